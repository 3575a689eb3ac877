"""Adaptive LoRA tuning: many configurations at once over one frozen base, weak ones ended early."""
