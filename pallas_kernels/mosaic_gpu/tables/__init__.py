"""What `scripts/tune_tiles.py` measured: one JSON file for every kind of device, read by `tile_table`."""
