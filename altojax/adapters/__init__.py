"""LoRA adapters as files: PEFT's format, target modules, merging, model cards."""
