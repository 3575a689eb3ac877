"""The families that there are, a file for each kind."""
