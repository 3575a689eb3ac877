"""The machine: what a run is computed on and with, and the memory it has."""

import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

MARGIN = 0.05
"""Share of a memory budget left free, for what no analysis sees (fragmentation, evaluation's outputs)."""

_EXHAUSTED = (
    "RESOURCE_EXHAUSTED",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What XLA says where memory runs out: its own allocator, the driver, and libraries that allocate beside it."""


def whereabouts(devices: int | None = None) -> dict[str, Any]:
    """Returns the devices of a run, and the versions of the libraries that make the numbers.

    Args:
        devices: How many it uses; None is all.
    """
    seen = jax.devices()
    versions = {name: metadata.version(name) for name in ("jax", "flax", "transformers")}
    return {"device": f"{devices or len(seen)} × {seen[0].device_kind}", "versions": versions}


def device_budget() -> int:
    """Returns the bytes of the default device: its own limit, or for a CPU what this process may have of the machine's.

    That is the machine's memory, or the least that a control group around this process (a container, a Slurm job, a
    systemd unit) may have.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *group_limits()])


def group_limits(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Returns the limits of memory of the control groups around this process, in bytes.

    Args:
        groups: Names the groups, as proc(5) has it.
        mounted: Where their files are, those of version 1 in ``memory``.
    """
    found = []
    for line in _lines(groups):
        _, kinds, name = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root = mounted / "memory" if kinds else mounted
        file = "memory.limit_in_bytes" if kinds else "memory.max"
        inner = root / name.strip("/")
        # Inside a container the outer part of the name is not there, and the root is the container's own group.
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root):
                found += [int(text) for text in _lines(folder / file) if text.isdigit()]
    return found


def out_of_memory(error: BaseException) -> str | None:
    """Returns what an error says of memory that ran out, in a few words; None where that is not what it says."""
    text = str(error)
    known = isinstance(error, jax.errors.JaxRuntimeError) and any(word in text for word in _EXHAUSTED)
    if not (known or isinstance(error, MemoryError)):
        return None
    asked = re.search(r"(?:allocat\w*|Unable to allocate) ([0-9.]+ ?[KMGT]?i?B|[0-9]+ bytes)", text)
    device = jax.local_devices()[0].device_kind
    return f"out of memory on {device}" + (f" when {asked[1]} more were asked for" if asked else "")


def explain(error: BaseException) -> str | None:
    """Returns one line for what may run out anywhere; None where `error` is something else."""
    said = out_of_memory(error)
    return said and f"{said}; expected a smaller model or batch, shorter rows, or more or larger devices"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
