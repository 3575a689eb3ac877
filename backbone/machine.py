"""The machine: what a run is computed on and with, and the memory it has."""

import os
from importlib import metadata
from typing import Any

import jax

MARGIN = 0.05
"""Share of a memory budget left free, for what no analysis sees (fragmentation, evaluation's outputs)."""


def whereabouts() -> dict[str, Any]:
    """Returns the devices, and the versions of the libraries that make the numbers."""
    devices = jax.devices()
    versions = {name: metadata.version(name) for name in ("jax", "flax", "transformers")}
    return {"device": f"{len(devices)} × {devices[0].device_kind}", "versions": versions}


def device_budget() -> int:
    """Returns the bytes of the default device: its own limit, or the machine's memory for a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
