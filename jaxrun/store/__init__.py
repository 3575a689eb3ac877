"""A run on disk: journal, metrics, the run folder; trackers."""
