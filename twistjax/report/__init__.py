"""Status and report of a run."""
