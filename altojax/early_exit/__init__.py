"""Early exit: which trials end before their schedule does, by which rules, and what those save on recorded curves."""
