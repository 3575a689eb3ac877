"""The scheduler on a cluster that is only pretended: the same decisions, a clock of its own."""
