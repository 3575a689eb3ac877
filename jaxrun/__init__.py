"""Configs, command line, journal, metrics, trackers, progress and reports of a run. Knows no model."""
