"""The loop over one base: trials in slots, their steps, and their checkpoints."""
