"""How a run is run: configs, command line, journal, metrics, trackers, progress, report kit. Knows no model."""
