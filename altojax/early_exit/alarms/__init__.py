"""Rules that judge one trial by its own curve: a file each, with config section and arithmetic."""
