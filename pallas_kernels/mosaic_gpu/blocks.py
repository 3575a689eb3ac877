"""Sizes of the blocks that the Hopper kernels work on, their layouts, and what stores them."""

import functools
from typing import Any

import jax.experimental.pallas.mosaic_gpu as plgpu
from jax import Array

TILE_M = 128
TILE_K = 64
WARPGROUPS = 2


def h_width(rank: int) -> int:
    """Columns of H in memory: those beyond the rank are never written, and read only into what is thrown away."""
    return max(rank, 64)


def swizzled(minor: int) -> tuple[Any, ...]:
    """Layout of a bfloat16 block in shared memory whose rows are `minor` long."""
    swizzle = plgpu.find_swizzle(minor * 16)
    # mypy takes an empty method of a protocol for an abstract one.
    return plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle)  # type: ignore[abstract]


def named(body: functools.partial[None], name: str) -> functools.partial[None]:
    """Gives a kernel the name that profiles show."""
    body.__name__ = name  # type: ignore[attr-defined]
    return body


def store(ref: Any, value: Array) -> None:
    """Stores registers to device memory in whatever pieces their layout has."""
    if hasattr(plgpu, "store"):
        plgpu.store(ref, value, optimized=False)
    else:  # JAX 0.11, whose assignment does not ask for whole sectors
        ref[...] = value
