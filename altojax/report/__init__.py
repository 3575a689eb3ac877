"""Status, reports, and replays of recorded curves."""
