"""Tile tables by kind of device, measured by `scripts/tune_tiles.py` and read by `tile_table`."""
