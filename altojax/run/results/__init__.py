"""What a run hands back: adapters, the test of the best, tables and report."""
