"""The grouped adapter GEMM on Hopper: four kernels, none of which knows how many slots there are."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dropout import Dropout
from pallas_kernels.mosaic_gpu.blocks import TILE_K, TILE_M
from pallas_kernels.mosaic_gpu.down import down_projection
from pallas_kernels.mosaic_gpu.gemm import adapter_gemm
from pallas_kernels.mosaic_gpu.slot_sums import slot_sums
from pallas_kernels.mosaic_gpu.tile_table import gemm_tiles, sum_tiles
from pallas_kernels.mosaic_gpu.tiles import down_stages
from pallas_kernels.products import RANKS, Passes
from pallas_kernels.segments import cut, segment_tiles


def refusals(
    x: Float[Array, "tokens k"], w: Float[Array, "k n"], a: Float[Array, "slots k rank"], tiles: int
) -> list[str]:
    """Returns why the kernels do not take these operands, nothing if they do."""
    reasons = []
    (m, k), n, rank = x.shape, w.shape[1], a.shape[2]
    if x.dtype != jnp.bfloat16:
        reasons.append(f"x is {x.dtype}, expected bfloat16")
    if m % tiles or (m // tiles) % TILE_M:
        reasons.append(f"{m // tiles} tokens a tile, expected a multiple of {TILE_M}")
    reasons += [
        f"{name} is {size}, expected a multiple of {TILE_K}" for name, size in (("k", k), ("n", n)) if size % TILE_K
    ]
    if rank > RANKS[-1]:
        reasons.append(f"rank {rank}, expected at most {RANKS[-1]}")
    return reasons


def _product(
    x: Array,
    w: Array,
    up: Array,
    m_slots: Array,
    h: Array,
    dropout: Dropout | None,
    *,
    transpose_w: bool,
    h_begin: int,
) -> Array:
    (m, k), (rank, n) = x.shape, up.shape[1:]
    tiles = gemm_tiles(m, n, k, rank, makes_h=False, transpose_w=transpose_w)
    return adapter_gemm(
        x, w, None, up, None, m_slots, h, dropout, transpose_w=transpose_w, tiles=tiles, h_begin=h_begin
    )[0]


def _product_and_down(
    x: Array, w: Array, down: Array, up: Array, scale: Array, m_slots: Array, *, transpose_w: bool
) -> tuple[Array, Array]:
    (m, k), (rank, n) = x.shape, up.shape[1:]
    tiles = gemm_tiles(m, n, k, rank, makes_h=True, transpose_w=transpose_w)
    return adapter_gemm(x, w, down, up, scale, m_slots, transpose_w=transpose_w, tiles=tiles)


def _down(x: Array, down: Array, scale: Array, m_slots: Array, dropout: Dropout | None) -> Array:
    return down_projection(x, down, scale, m_slots, dropout, stages=down_stages(down.shape[1]))


def _sums(
    x: Array,
    hs: Sequence[Array],
    m_slots: Array,
    dropout: Dropout | None,
    *,
    slots: int,
    rank: int,
    h_begin: int,
) -> list[Array]:
    m, columns = x.shape
    tiles = sum_tiles(columns, sum(h.shape[1] for h in hs), m=m)
    segments = cut(m_slots, slots, segment_tiles(m_slots.shape[0], -(-columns // tiles.columns), tiles.sms))
    return slot_sums(x, hs, segments, dropout, m_slots, rank=rank, tiles=tiles, h_begin=h_begin)


PASSES = Passes(lambda tokens: TILE_M, _product, _product_and_down, _down, _sums)
