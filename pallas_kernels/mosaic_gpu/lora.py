"""The grouped adapter GEMM on Hopper, with its gradients: four kernels, none of which knows how many slots there are.

Forward, Y = X·W + H·B with H = s·X·A made on the way. Backward, the same kernel gives dX = dY·Wᵀ + dH·Aᵀ with
dH = s·dY·Bᵀ made on the way, and two sums over each slot's rows give dA = Xᵀ·dH and dB = Hᵀ·dY. Projections of one X
share a pass over it for H, and one for dA. Where features of X are dropped for the adapter alone, H and dH take a pass
of their own, and the masks are made again wherever they are needed.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.dropout import Dropout
from pallas_kernels.mosaic_gpu.down import down_projection
from pallas_kernels.mosaic_gpu.gemm import TILE_K, TILE_M, adapter_gemm
from pallas_kernels.mosaic_gpu.slot_sums import cut, slot_sums
from pallas_kernels.mosaic_gpu.tile_table import gemm_tiles, sum_tiles
from pallas_kernels.mosaic_gpu.tiles import down_stages, segment_tiles
from pallas_kernels.xla import PRODUCT

RANKS = (16, 32, 64, 128)


def lora_matmuls(
    x: Float[Array, "tokens k"],
    ws: Sequence[Float[Array, "k n"]],
    adapters: Sequence[tuple[Float[Array, "slots k rank"], Float[Array, "slots rank n"]]],
    scale: Float[Array, " slots"],
    tile_slots: Int[Array, " tiles"],
    *,
    dropout: Dropout | None,
) -> tuple[Float[Array, "tokens n"], ...]:
    """See `pallas_kernels.api.lora_matmuls`; `refusals` says what it does not take."""
    per_tile = x.shape[0] // tile_slots.shape[0] // TILE_M
    m_slots = jnp.repeat(tile_slots, per_tile, total_repeat_length=x.shape[0] // TILE_M)
    return _products(x, tuple(ws), tuple(adapters), scale, m_slots, dropout)


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


@jax.custom_vjp
def _products(x: Array, ws: Any, adapters: Any, scale: Array, m_slots: Array, dropout: Any) -> tuple[Array, ...]:
    return _products_forward(x, ws, adapters, scale, m_slots, dropout)[0]


def _products_forward(
    x: Array, ws: Any, adapters: Any, scale: Array, m_slots: Array, dropout: Any
) -> tuple[tuple[Array, ...], tuple[Any, ...]]:
    downs, ups = _halves(adapters, x.dtype)
    rank = downs[0].shape[1]
    ys, hs = [], []
    if len(ws) == 1 and dropout is None:
        tiles = gemm_tiles(x.shape[0], ws[0].shape[1], x.shape[1], rank, makes_h=True)
        y, h = adapter_gemm(x, ws[0], downs[0], ups[0], scale, m_slots, transpose_w=False, tiles=tiles)
        ys, hs = [y], [h]
    else:
        together = RANKS[-1] // rank
        for one in range(0, len(ws), together):
            wide = _rows_of_rank(jnp.concatenate(downs[one : one + together], axis=1), x.dtype)
            stages = down_stages(wide.shape[1])
            hs.append(down_projection(x, wide, scale, m_slots, dropout, stages=stages))
        for one, (w, up) in enumerate(zip(ws, ups, strict=True)):
            h, begin = _place(hs, one, rank)
            tiles = gemm_tiles(x.shape[0], w.shape[1], x.shape[1], rank, makes_h=False)
            y, _ = adapter_gemm(x, w, None, up, scale, m_slots, h, transpose_w=False, tiles=tiles, h_begin=begin)
            ys.append(y)
    ys, hs = [checkpoint_name(y, PRODUCT) for y in ys], [checkpoint_name(h, PRODUCT) for h in hs]
    return tuple(ys), (x, ws, adapters, scale, m_slots, dropout, hs)


def _products_backward(kept: tuple[Any, ...], dys: tuple[Array, ...]) -> tuple[Any, ...]:
    x, ws, adapters, scale, m_slots, dropout, hs = kept
    downs, ups = _halves(adapters, x.dtype)
    (m, k), (slots, rank, _) = x.shape, downs[0].shape
    dxs, dhs, dbs = [], [], []
    for one, (w, down, up, dy) in enumerate(zip(ws, downs, ups, dys, strict=True)):
        dy = dy.astype(x.dtype)
        tiles = gemm_tiles(m, k, w.shape[1], rank, makes_h=dropout is None, transpose_w=True)
        if dropout is None:
            dx, dh = adapter_gemm(dy, w, up, down, scale, m_slots, transpose_w=True, tiles=tiles)
        else:
            dh = down_projection(dy, up, scale, m_slots, stages=down_stages(rank))
            dx, _ = adapter_gemm(dy, w, None, down, scale, m_slots, dh, dropout, transpose_w=True, tiles=tiles)
        h, begin = _place(hs, one, rank)
        dxs.append(dx)
        dhs.append(dh)
        dbs += _sums_per_slot(dy, [h], m_slots, None, slots, rank, begin)
    das = _sums_per_slot(x, dhs, m_slots, dropout, slots, rank)
    gradients = tuple(
        (da[:, :, : a.shape[2]].astype(a.dtype), db[:, :, : b.shape[1]].swapaxes(1, 2).astype(b.dtype))
        for da, db, (a, b) in zip(das, dbs, adapters, strict=True)
    )
    return _sum(dxs), tuple(None for _ in ws), gradients, None, None, None


_products.defvjp(_products_forward, _products_backward)


def _halves(adapters: Any, dtype: DTypeLike) -> tuple[list[Array], list[Array]]:
    """Returns every A, transposed, and every B as [slots, rank, features] of one rank."""
    most = max(a.shape[2] for a, _ in adapters)
    downs = [_rows_of_rank(a.swapaxes(1, 2), dtype, most) for a, _ in adapters]
    return downs, [_rows_of_rank(b, dtype, most) for _, b in adapters]


def _rows_of_rank(
    adapter: Float[Array, "slots rank features"], dtype: DTypeLike, least: int = 0
) -> Float[Array, "slots wider features"]:
    """Returns an adapter's half in the kernels' type, with zero rows up to a rank that they take."""
    rank = next(one for one in RANKS if one >= max(adapter.shape[1], least))
    return jnp.pad(adapter.astype(dtype), ((0, 0), (0, rank - adapter.shape[1]), (0, 0)))


def _place(hs: Sequence[Array], projection: int, rank: int) -> tuple[Array, int]:
    """Returns the H that holds a projection's columns, and the first of them."""
    together = RANKS[-1] // rank
    return hs[projection // together], projection % together * rank


def _sums_per_slot(
    rows: Float[Array, "m c"],
    hs: Sequence[Array],
    m_slots: Array,
    dropout: Dropout | None,
    slots: int,
    rank: int,
    h_begin: int = 0,
) -> list[Float[Array, "slots c rank"]]:
    tiles = sum_tiles(rows.shape[1], sum(h.shape[1] for h in hs), m=rows.shape[0])
    chunk = segment_tiles(m_slots.shape[0], -(-rows.shape[1] // tiles.columns), tiles.sms)
    segments = cut(m_slots, slots, chunk)
    return slot_sums(rows, hs, segments, dropout, m_slots, rank=rank, tiles=tiles, h_begin=h_begin)


def _sum(parts: Sequence[Array]) -> Array:
    """Adds in float32 and rounds once."""
    if len(parts) == 1:
        return parts[0]
    return functools.reduce(jnp.add, [part.astype(jnp.float32) for part in parts]).astype(parts[0].dtype)
