"""The grouped adapter GEMM for NVIDIA GPUs from Ampere on; H takes a pass of its own, shared where X is shared."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels import device
from pallas_kernels.dropout import Dropout, thresholds
from pallas_kernels.products import RANKS, Passes
from pallas_kernels.segments import cut, segment_tiles
from pallas_kernels.triton import kernels
from pallas_kernels.triton.launch import launch
from pallas_kernels.triton.tiles import gemm_tiles, row_tile

DOWN_ROWS, DOWN_STEP, SUM_COLUMNS = 64, 64, 64


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
    (m, k), (slots, rank, n) = x.shape, up.shape
    tile_m = m // m_slots.shape[0]
    tiles = gemm_tiles(tile_m, drops=dropout is not None)
    (y,) = launch(
        kernels.adapter_gemm,
        [x, w, up, m_slots, h, *_mask(dropout, m_slots)],
        [jax.ShapeDtypeStruct((m, n), x.dtype)],
        grid=(m // tile_m * -(-n // tiles.tile_n),),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        M=m,
        N=n,
        K=k,
        RANK=rank,
        SLOTS=slots,
        H_WIDTH=h.shape[1],
        H_BEGIN=h_begin,
        TRANSPOSE_W=transpose_w,
        DROPS=dropout is not None,
        TILE_M=tile_m,
        TILE_N=tiles.tile_n,
        TILE_K=tiles.tile_k,
        GROUP=8,
    )
    return y


def _product_and_down(
    x: Array, w: Array, down: Array, up: Array, scale: Array, m_slots: Array, *, transpose_w: bool
) -> tuple[Array, Array]:
    h = _down(x, down, scale, m_slots, None)
    return _product(x, w, up, m_slots, h, None, transpose_w=transpose_w, h_begin=0), h


def _down(x: Array, down: Array, scale: Array, m_slots: Array, dropout: Dropout | None) -> Array:
    (m, k), (slots, rank, _) = x.shape, down.shape
    tile_m = m // m_slots.shape[0]
    rows = min(tile_m, DOWN_ROWS)
    (h,) = launch(
        kernels.down_projection,
        [x, down, scale, m_slots, *_mask(dropout, m_slots)],
        [jax.ShapeDtypeStruct((m, rank), x.dtype)],
        grid=(m // rows,),
        num_warps=4,
        num_stages=4,
        K=k,
        RANK=rank,
        SLOTS=slots,
        DROPS=dropout is not None,
        TILE_M=tile_m,
        ROWS=rows,
        TILE_K=DOWN_STEP,
    )
    return h


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
    blocks = -(-x.shape[1] // SUM_COLUMNS)
    # Four thread blocks share a multiprocessor.
    chunk = segment_tiles(m_slots.shape[0], blocks, 4 * device.multiprocessors())
    segments = cut(m_slots, slots, chunk)
    together = RANKS[-1] // rank
    sums: list[Array] = []
    for one in range(0, len(hs), together):
        part = hs[one : one + together]
        if len(part) == 1:
            wide, begin, width = part[0], h_begin, rank
        else:
            wide, begin = jnp.concatenate([h[:, h_begin : h_begin + rank] for h in part], axis=1), 0
            width = next(one for one in RANKS if one >= wide.shape[1])
            wide = jnp.pad(wide, ((0, 0), (0, width - wide.shape[1])))
        grid = {"C": x.shape[1], "WIDTH": width, "TILE_C": SUM_COLUMNS}
        (partial,) = launch(
            kernels.segment_sums,
            [x, wide, segments.order, segments.start, segments.tiles, m_slots, *_mask(dropout, m_slots)],
            [jax.ShapeDtypeStruct((segments.start.shape[0], x.shape[1], width), jnp.float32)],
            grid=(segments.start.shape[0], blocks),
            num_warps=4,
            num_stages=3,
            H_WIDTH=wide.shape[1],
            H_BEGIN=begin,
            DROPS=dropout is not None,
            TILE_M=x.shape[0] // m_slots.shape[0],
            **grid,
        )
        (total,) = launch(
            kernels.add_segments,
            [partial, segments.first, segments.number],
            [jax.ShapeDtypeStruct((slots, x.shape[1], width), jnp.float32)],
            grid=(slots, blocks),
            num_warps=4,
            num_stages=2,
            **grid,
        )
        sums += [total[:, :, at * rank : (at + 1) * rank] for at in range(len(part))]
    return sums


def _mask(dropout: Dropout | None, m_slots: Array) -> list[Array]:
    """Returns the three operands of masks; kernels that make none do not follow those pointers."""
    return [m_slots] * 3 if dropout is None else [dropout.token_keys, *thresholds(dropout)]


PASSES = Passes(row_tile, _product, _product_and_down, _down, _sums)
