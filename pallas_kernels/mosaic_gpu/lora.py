"""The grouped adapter GEMM on Hopper, with its gradients: four kernels, none of which knows how many slots there are.

Forward, Y = X·W + H·B with H = s·X·A made on the way. Backward, the same kernel gives dX = dY·Wᵀ + dH·Aᵀ with
dH = s·dY·Bᵀ made on the way, and two sums over each slot's rows give dA = Xᵀ·dH and dB = Hᵀ·dY. Where features of X are
dropped for the adapter alone, H and dH take a pass of their own, and the masks are made again wherever they are needed.
"""

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
from pallas_kernels.mosaic_gpu.tiles import down_stages, gemm_tiles, segment_tiles, sum_tiles
from pallas_kernels.xla import PRODUCT

RANKS = (16, 32, 64, 128)


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
    """See `pallas_kernels.api.lora_matmul`; `refusals` says what it does not take."""
    per_tile = x.shape[0] // tile_slots.shape[0] // TILE_M
    m_slots = jnp.repeat(tile_slots, per_tile, total_repeat_length=x.shape[0] // TILE_M)
    return _product(x, w, a, b, scale, m_slots, dropout)


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
def _product(x: Array, w: Array, a: Array, b: Array, scale: Array, m_slots: Array, dropout: Dropout | None) -> Array:
    return _product_forward(x, w, a, b, scale, m_slots, dropout)[0]


def _product_forward(
    x: Array, w: Array, a: Array, b: Array, scale: Array, m_slots: Array, dropout: Dropout | None
) -> tuple[Array, tuple[Any, ...]]:
    a_rows, b_rows = _rows_of_rank(a.swapaxes(1, 2), x.dtype), _rows_of_rank(b, x.dtype)
    rank = a_rows.shape[1]
    tiles = gemm_tiles(x.shape[0], w.shape[1], x.shape[1], rank, makes_h=dropout is None)
    if dropout is None:
        y, h = adapter_gemm(x, w, a_rows, b_rows, scale, m_slots, transpose_w=False, tiles=tiles)
    else:
        h = down_projection(x, a_rows, scale, m_slots, dropout, stages=down_stages(rank))
        y, _ = adapter_gemm(x, w, None, b_rows, scale, m_slots, h, transpose_w=False, tiles=tiles)
    y, h = checkpoint_name(y, PRODUCT), checkpoint_name(h, PRODUCT)
    return y, (x, w, a, b, scale, m_slots, dropout, h)


def _product_backward(kept: tuple[Any, ...], dy: Array) -> tuple[Any, ...]:
    x, w, a, b, scale, m_slots, dropout, h = kept
    a_rows, b_rows = _rows_of_rank(a.swapaxes(1, 2), x.dtype), _rows_of_rank(b, x.dtype)
    (m, k), n, rank = x.shape, w.shape[1], a_rows.shape[1]
    dy = dy.astype(x.dtype)
    tiles = gemm_tiles(m, k, n, rank, makes_h=dropout is None)
    if dropout is None:
        dx, dh = adapter_gemm(dy, w, b_rows, a_rows, scale, m_slots, transpose_w=True, tiles=tiles)
    else:
        dh = down_projection(dy, b_rows, scale, m_slots, stages=down_stages(rank))
        dx, _ = adapter_gemm(dy, w, None, a_rows, scale, m_slots, dh, dropout, transpose_w=True, tiles=tiles)
    da = _sum_per_slot(x, dh, m_slots, dropout, a.shape[0], a.shape[2])
    db = _sum_per_slot(dy, h, m_slots, None, b.shape[0], b.shape[1]).swapaxes(1, 2)
    return dx, None, da.astype(a.dtype), db.astype(b.dtype), None, None, None


_product.defvjp(_product_forward, _product_backward)


def _rows_of_rank(
    adapter: Float[Array, "slots rank features"], dtype: DTypeLike
) -> Float[Array, "slots wider features"]:
    """Returns an adapter's half in the kernels' type, with zero rows up to a rank that they take."""
    rank = next(one for one in RANKS if one >= adapter.shape[1])
    return jnp.pad(adapter.astype(dtype), ((0, 0), (0, rank - adapter.shape[1]), (0, 0)))


def _sum_per_slot(
    rows: Float[Array, "m c"], h: Array, m_slots: Array, dropout: Dropout | None, slots: int, rank: int
) -> Float[Array, "slots c rank"]:
    tiles = sum_tiles(rows.shape[1], h.shape[1])
    chunk = segment_tiles(m_slots.shape[0], -(-rows.shape[1] // tiles.columns), tiles.sms)
    segments = cut(m_slots, slots, chunk)
    return slot_sums(rows, h, segments, dropout, m_slots, rank=rank, chunk=chunk, tiles=tiles)
