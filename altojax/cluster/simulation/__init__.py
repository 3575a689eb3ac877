"""The scheduler on a simulated cluster: the same decisions, a clock of its own."""
