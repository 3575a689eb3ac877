"""The config of a run: tasks, search spaces, and the names that other tools give to the same keys."""
