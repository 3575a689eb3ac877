"""Tile tables by kind of device, measured by `scripts/devices/tune_tiles.py` and read by `tile_table`."""
