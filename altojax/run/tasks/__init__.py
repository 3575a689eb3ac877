"""What tasks are made of: their rows, and searches that propose trials."""
