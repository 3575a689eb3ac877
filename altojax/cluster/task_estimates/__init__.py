"""Speed and remaining samples of a task."""
