"""The reference implementation of the grouped adapter GEMM.

Plain XLA, every platform, and the oracle of every kernel.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.dropout import Dropout, drop

PRODUCT = "lora_matmul"
"""Name (`jax.ad_checkpoint.checkpoint_name`) of what kernels compute, for policies that keep products."""


def lora_matmuls(
    x: Float[Array, "tokens k"],
    ws: Sequence[Float[Array, "k n"]],
    adapters: Sequence[tuple[Float[Array, "slots k rank"], Float[Array, "slots rank n"]]],
    scale: Float[Array, " slots"],
    tile_slots: Int[Array, " tiles"],
    *,
    dropout: Dropout | None,
) -> tuple[Float[Array, "tokens n"], ...]:
    """See `pallas_kernels.api.lora_matmuls`.

    A and B are gathered per tile; a neighbour's non-finite adapter stays its own.
    """
    source = x if dropout is None else drop(x, dropout, tile_slots)
    return tuple(_lora_matmul(x, source, w, a, b, scale, tile_slots) for w, (a, b) in zip(ws, adapters, strict=True))


def _lora_matmul(
    x: Array, source: Array, w: Array, a: Array, b: Array, scale: Array, tile_slots: Array
) -> Float[Array, "tokens n"]:
    tiles = tile_slots.shape[0]
    y = x @ w
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
