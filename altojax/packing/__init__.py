"""The intra-task scheduler: which trials get slots, and which share a step."""
