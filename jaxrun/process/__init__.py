"""The process of a program: startup, errors, Ctrl-C, environment, background threads."""
