"""Runs that several tasks share: merged, trained once, delivered to each."""
