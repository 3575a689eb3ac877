"""The reference implementation of the grouped adapter GEMM.

Plain XLA, every platform, and the oracle of every kernel.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.dropout import Dropout, drop

PRODUCT = "lora_matmul"
"""Name (`jax.ad_checkpoint.checkpoint_name`) of what kernels compute, for policies that keep products."""


def lora_matmul(
    x: Float[Array, "tokens k"],
    w: Float[Array, "k n"],
    a: Float[Array, "slots k rank"],
    b: Float[Array, "slots rank n"],
    scale: Float[Array, " slots"],
    tile_slots: Int[Array, " tiles"],
    *,
    dropout: Dropout | None,
) -> Float[Array, "tokens n"]:
    """See `pallas_kernels.api.lora_matmul`.

    A and B are gathered per tile; a neighbour's non-finite adapter stays its own.
    """
    tiles = tile_slots.shape[0]
    y = x @ w
    source = x if dropout is None else drop(x, dropout, tile_slots)
    tiled = source.reshape(tiles, -1, source.shape[1])
    # Gathered before they are rounded, so that a slot's gradient is summed over its tiles in float32.
    a_of_tile = a[tile_slots].astype(x.dtype)
    b_of_tile = b[tile_slots].astype(x.dtype)
    # [tiles, tile, k] · [tiles, k, rank] -> [tiles, tile, rank]
    h = jnp.einsum("mtk,mkr->mtr", tiled, a_of_tile, preferred_element_type=jnp.float32)
    h = (h * scale[tile_slots][:, None, None]).astype(x.dtype)
    # [tiles, tile, rank] · [tiles, rank, n] -> [tiles, tile, n]
    delta = jnp.einsum("mtr,mrn->mtn", h, b_of_tile, preferred_element_type=jnp.float32)
    return (y.astype(jnp.float32) + delta.reshape(y.shape)).astype(x.dtype)
