"""What a run was computed on and with."""

from importlib import metadata
from typing import Any

import jax


def whereabouts() -> dict[str, Any]:
    """Returns the devices, and the versions of the libraries that make the numbers."""
    devices = jax.devices()
    versions = {name: metadata.version(name) for name in ("jax", "flax", "transformers")}
    return {"device": f"{len(devices)} × {devices[0].device_kind}", "versions": versions}
