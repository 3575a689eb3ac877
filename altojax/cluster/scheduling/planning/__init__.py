"""Schedules of waiting tasks: list schedules, local search, CP-SAT, merging, bounds."""
