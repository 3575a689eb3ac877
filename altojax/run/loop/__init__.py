"""The loop over one base: which trials sit in slots, their steps, and what the run saves of them."""
