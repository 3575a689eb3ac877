"""Rules that compare the trials of a task at rungs: a file each, with config section and arithmetic."""
