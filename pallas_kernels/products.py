"""The grouped adapter GEMM and its gradients as an order of three passes, which an implementation's kernels make.

Forward, Y = X·W + H·B with H = s·drop(X)·A. Backward, the same pass gives dX = dY·Wᵀ + dH·Aᵀ with dH = s·dY·Bᵀ, and
two sums over each slot's rows give dA = drop(X)ᵀ·dH and dB = dYᵀ·H. Projections of one X share a pass over it for H,
and one for dA; a projection that is alone may get H on the way. Where features of X are dropped for the adapter alone,
H and dH take a pass of their own, and the masks are made again wherever they are needed.

A is handled transposed, so that both halves are [slots, rank, features].
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.dropout import Dropout
from pallas_kernels.xla import PRODUCT

RANKS = (16, 32, 64, 128)
"""Ranks that kernels are made for; one between two is padded with zeros up to the next."""


class Product(Protocol):
    """The pass over X and W."""

    def __call__(
        self,
        x: Float[Array, "m k"],
        w: Float[Array, "..."],
        up: Float[Array, "slots rank n"],
        m_slots: Int[Array, " m_tiles"],
        h: Float[Array, "m h_width"],
        dropout: Dropout | None,
        *,
        transpose_w: bool,
        h_begin: int,
    ) -> Float[Array, "m n"]:
        """Returns Y = X·W + drop(H·U_g), W lying transposed or not; `rank` columns of H count, from `h_begin` on."""


class ProductAndDown(Protocol):
    """The pass over X and W that makes H on the way."""

    def __call__(
        self,
        x: Float[Array, "m k"],
        w: Float[Array, "..."],
        down: Float[Array, "slots rank k"],
        up: Float[Array, "slots rank n"],
        scale: Float[Array, " slots"],
        m_slots: Int[Array, " m_tiles"],
        *,
        transpose_w: bool,
    ) -> tuple[Float[Array, "m n"], Float[Array, "m h_width"]]:
        """Returns Y = X·W + H·U_g and H = s_g·X·D_gᵀ, W lying transposed or not."""


class Down(Protocol):
    """The pass over X for H."""

    def __call__(
        self,
        x: Float[Array, "m k"],
        down: Float[Array, "slots rank k"],
        scale: Float[Array, " slots"],
        m_slots: Int[Array, " m_tiles"],
        dropout: Dropout | None,
    ) -> Float[Array, "m h_width"]:
        """Returns H = s_g·drop(X)·D_gᵀ, and maybe columns beyond the rank that hold anything."""


class Sums(Protocol):
    """The pass over X for its products with several H."""

    def __call__(
        self,
        x: Float[Array, "m c"],
        hs: Sequence[Float[Array, "m h_width"]],
        m_slots: Int[Array, " m_tiles"],
        dropout: Dropout | None,
        *,
        slots: int,
        rank: int,
        h_begin: int,
    ) -> list[Float[Array, "slots c rank"]]:
        """Returns drop(X)ᵀ·H of each slot's rows for every H, float32; zero for a slot without rows."""


class Passes(NamedTuple):
    """The kernels of an implementation. Rows come in tiles of one slot each, whose slots are `m_slots`.

    Attributes:
        row_tile: Returns the rows of such a tile, which divide a run of so many tokens of one slot.
        product: The pass over X and W.
        product_and_down: The same, making H on the way.
        down: The pass over X for H.
        sums: The pass over X for its products with several H.
    """

    row_tile: Callable[[int], int]
    product: Product
    product_and_down: ProductAndDown
    down: Down
    sums: Sums


def lora_matmuls(
    passes: Passes,
    x: Float[Array, "tokens k"],
    ws: Sequence[Float[Array, "k n"]],
    adapters: Sequence[tuple[Float[Array, "slots k rank"], Float[Array, "slots rank n"]]],
    scale: Float[Array, " slots"],
    tile_slots: Int[Array, " tiles"],
    *,
    dropout: Dropout | None,
) -> tuple[Float[Array, "tokens n"], ...]:
    """See `pallas_kernels.api.lora_matmuls`; an implementation's refusals say what its passes do not take."""
    tokens = x.shape[0] // tile_slots.shape[0]
    parts = tokens // passes.row_tile(tokens)
    m_slots = jnp.repeat(tile_slots, parts, total_repeat_length=tile_slots.shape[0] * parts)
    return _products(passes, x, tuple(ws), tuple(adapters), scale, m_slots, dropout)


_jit = functools.partial(jax.jit, static_argnums=0)
"""For what layers in place repeat: kernels of the same shapes are traced and lowered once a program."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _products(
    passes: Passes, x: Array, ws: Any, adapters: Any, scale: Array, m_slots: Array, dropout: Any
) -> tuple[Array, ...]:
    return _products_forward(passes, x, ws, adapters, scale, m_slots, dropout)[0]


def _products_forward(
    passes: Passes, x: Array, ws: Any, adapters: Any, scale: Array, m_slots: Array, dropout: Any
) -> tuple[tuple[Array, ...], tuple[Any, ...]]:
    ys, hs = _forward(passes, x, ws, adapters, scale, m_slots, dropout)
    ys, hs = [checkpoint_name(y, PRODUCT) for y in ys], [checkpoint_name(h, PRODUCT) for h in hs]
    return tuple(ys), (x, ws, adapters, scale, m_slots, dropout, hs)


@_jit
def _forward(
    passes: Passes, x: Array, ws: Any, adapters: Any, scale: Array, m_slots: Array, dropout: Any
) -> tuple[list[Array], list[Array]]:
    """Returns the products, and every H."""
    downs, ups = _halves(adapters, x.dtype)
    rank = downs[0].shape[1]
    ys, hs = [], []
    if len(ws) == 1 and dropout is None:
        y, h = passes.product_and_down(x, ws[0], downs[0], ups[0], scale, m_slots, transpose_w=False)
        ys, hs = [y], [h]
    else:
        together = RANKS[-1] // rank
        for one in range(0, len(ws), together):
            wide = _rows_of_rank(jnp.concatenate(downs[one : one + together], axis=1), x.dtype)
            hs.append(passes.down(x, wide, scale, m_slots, dropout))
        for one, (w, up) in enumerate(zip(ws, ups, strict=True)):
            h, begin = _place(hs, one, rank)
            ys.append(passes.product(x, w, up, m_slots, h, None, transpose_w=False, h_begin=begin))
    return ys, hs


def _products_backward(passes: Passes, kept: tuple[Any, ...], dys: tuple[Array, ...]) -> tuple[Any, ...]:
    dx, adapters = _backward(passes, *kept, dys)
    return dx, tuple(None for _ in kept[1]), adapters, None, None, None


_products.defvjp(_products_forward, _products_backward)


@_jit
def _backward(
    passes: Passes, x: Array, ws: Any, adapters: Any, scale: Array, m_slots: Array, dropout: Any, hs: Any, dys: Any
) -> tuple[Array, tuple[tuple[Array, Array], ...]]:
    """Returns the gradients of X and of every A and B."""
    downs, ups = _halves(adapters, x.dtype)
    slots, rank, _ = downs[0].shape
    dxs, dhs, dbs = [], [], []
    for one, (w, down, up, dy) in enumerate(zip(ws, downs, ups, dys, strict=True)):
        dy = dy.astype(x.dtype)
        if dropout is None:
            dx, dh = passes.product_and_down(dy, w, up, down, scale, m_slots, transpose_w=True)
        else:
            dh = passes.down(dy, up, scale, m_slots, None)
            dx = passes.product(dy, w, down, m_slots, dh, dropout, transpose_w=True, h_begin=0)
        h, begin = _place(hs, one, rank)
        dxs.append(dx)
        dhs.append(dh)
        dbs += passes.sums(dy, [h], m_slots, None, slots=slots, rank=rank, h_begin=begin)
    das = passes.sums(x, dhs, m_slots, dropout, slots=slots, rank=rank, h_begin=0)
    gradients = tuple(
        (da[:, :, : a.shape[2]].astype(a.dtype), db[:, :, : b.shape[1]].swapaxes(1, 2).astype(b.dtype))
        for da, db, (a, b) in zip(das, dbs, adapters, strict=True)
    )
    return _sum(dxs), gradients


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


def _sum(parts: Sequence[Array]) -> Array:
    """Adds in float32 and rounds once."""
    if len(parts) == 1:
        return parts[0]
    return functools.reduce(jnp.add, [part.astype(jnp.float32) for part in parts]).astype(parts[0].dtype)
