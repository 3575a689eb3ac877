"""Dropout masks made in a kernel's registers, from the same counters as `pallas_kernels.dropout`'s."""

from typing import Any

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pallas_kernels.dropout import GOLDEN, mix


def keep_tile(keys: Any, first: Array, threshold: Array, shape: tuple[int, int]) -> Array:
    """Makes the dropout mask of a tile of rows and features in registers, bit for bit `pallas_kernels.dropout`'s.

    Args:
        keys: uint32 [rows] in memory.
        first: The tile's first feature.
        threshold: uint32, from `pallas_kernels.dropout.thresholds`.
        shape: Rows and features of the tile.
    """
    key = plgpu.load(keys, layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)
    feature = plgpu.broadcasted_iota(jnp.uint32, shape, 1, layout=plgpu.Layout.WGMMA) + first.astype(jnp.uint32)
    bits = mix(lax.broadcast_in_dim(key, shape, [0]) + feature * jnp.uint32(GOLDEN))
    return (bits >> jnp.uint32(8)) >= threshold
