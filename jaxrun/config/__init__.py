"""Strict configs, the command line, help."""
