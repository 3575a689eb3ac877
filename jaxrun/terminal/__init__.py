"""Progress, tables, sizes and timing for a terminal."""
