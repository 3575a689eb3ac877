"""Inventory of this machine for both doctors: Python, packages, devices, the compilation cache."""

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax

from jaxlm.models.mixers.attend import fused_heads
from jaxrun.process.environment import CACHE, is_own
from jaxrun.terminal.sizes import counted, size_text

PACKAGES = (
    "altojax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "numpy",
    "pydantic",
    "matplotlib",
)
OPTIONAL = ("jax-triton", "triton", "tensorboardX", "trackio", "wandb")


def inventory() -> Iterator[str]:
    """Yields a line about each."""
    yield f"python        {platform.python_version()} on {platform.platform()}"
    yield f"packages      {', '.join(f'{name} {_version(name)}' for name in PACKAGES)}"
    yield f"optional      {', '.join(f'{name} {_version(name)}' for name in OPTIONAL)}"
    yield f"backend       {jax.default_backend()}"
    for device in jax.local_devices():
        yield f"device        {device.id}: {device.device_kind}, {_memory(device)}"
    widest = fused_heads()
    fused = "xla" if widest is None else f"cudnn for 16-bit heads of up to {widest}, else xla"
    yield f"attention     {fused}"
    cache = jax.config.jax_compilation_cache_dir or os.environ.get(CACHE)
    yield f"compile cache {_folder(cache)}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _memory(device: jax.Device) -> str:
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return "memory of the machine"
    return f"{size_text(stats['bytes_limit'])} of memory, {size_text(stats.get('bytes_in_use', 0))} in use"


def _folder(cache: str | None) -> str:
    if not cache:
        why = f"as {CACHE} says" if CACHE in os.environ else "for want of a folder of this user's alone"
        return f"none, {why}: every start compiles again ({CACHE} names one)"
    path = Path(cache)
    if not path.is_dir():
        return f"{cache} (made when first used)"
    files = [file for file in path.glob("*-cache") if file.is_file()]
    writable = "" if os.access(path, os.W_OK) else ", NOT WRITABLE"
    most = jax.config.jax_compilation_cache_max_size
    bound = "" if most < 0 else f" of at most {size_text(most)}"
    closed = "" if is_own(path) else ", NOT THIS USER'S ALONE: who writes there decides what runs here"
    size = size_text(sum(file.stat().st_size for file in files))
    return f"{cache}: {counted(len(files), 'program')}, {size}{bound}{writable}{closed}"
