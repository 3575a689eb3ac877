"""Checkpoints whose matrices are quantised already, a file for each way in which tools write them."""
