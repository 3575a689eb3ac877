"""Mixtures of experts: a router gives each token its own, and tokens sorted by expert meet them in a grouped product.

No expert has a capacity and no token is dropped, so that what a token becomes depends on no other token.

Source: Switch Transformers (2101.03961) for the router, MegaBlocks (2211.15841) for products without capacities.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxlm.devices.frozen_weight import FrozenWeight, dense
from jaxlm.families.config import ModelConfig
from jaxlm.families.projections import expert_kinds_of
from jaxlm.models.layers import Linear, random_weight
from pallas_kernels import PRODUCT

SMALLEST_TILE = 8
"""Rows that meet one expert at a time, at least."""
LARGEST_TILE = {"cpu": 256, "accelerator": 512}
"""At most."""
TOGETHER_BYTES = {"cpu": 0, "accelerator": 2**28}
"""Matrices that are read for the tiles of one turn of the loop: on an accelerator a turn takes long beside what a tile
computes, and on a CPU reading them twice does."""


class Tiles(NamedTuple):
    """Tiles of rows that are sorted by expert, each of one expert.

    The last of an expert may reach into rows of the next: these are computed again, by the tile that they are of.

    Attributes:
        experts: int32 [tiles], of each tile: its expert, or whatever else rows are sorted by.
        starts: int32 [tiles], first row of each.
        ends: int32 [tiles], row behind the last that is its expert's.
        used: int32, tiles that there are; those behind them are none.
    """

    experts: Int[Array, " tiles"]
    starts: Int[Array, " tiles"]
    ends: Int[Array, " tiles"]
    used: Int[Array, ""]


class SortedTokens(NamedTuple):
    """Tokens in the order of their experts, each as often as it has experts.

    Attributes:
        places: int32 [rows], of the token and its expert at each row among all, token by token; `tile` rows behind the
            last hold the first, and mean nothing.
        rows: int32 [tokens, active], the row of each token and its expert.
        experts: int32 [rows], of each row.
        tiles: Of the rows.
        tile: Rows of a tile.
        by_slot: Of the rows, each of one expert and of one slot, where adapters ask for them: group
            ``expert * slots + slot``.
        slot_tile: Rows of one of these.
    """

    places: Int[Array, " rows"]
    rows: Int[Array, "tokens active"]
    experts: Int[Array, " rows"]
    tiles: Tiles
    tile: int
    by_slot: Tiles | None = None
    slot_tile: int = 0


class Experts(nnx.Module):
    """Gated MLPs of a layer, one an expert; frozen.

    Attributes:
        gate_up_proj: Both in one, columns by turns; or where they are apart, what adapts them together, if anything.
        gate_proj: Alone, where they are apart.
        up_proj: Likewise.
        down_proj: Back to the width.
    """

    gate_up_proj: "ExpertMatrix | None"
    gate_proj: "ExpertMatrix"
    up_proj: "ExpertMatrix"
    down_proj: "ExpertMatrix"

    def __init__(self, config: ModelConfig, **kinds: Any):
        self.config, self.gate_up_proj = config, nnx.data(None)
        for one in expert_kinds_of(config):
            shape = (config.experts, one.in_features(config), one.out_features(config))
            setattr(self, one.name, ExpertMatrix(shape, config.experts_bias, **kinds))

    @property
    def by_slot(self) -> bool:
        """Whether any of them asks for tiles by slot."""
        return any(one is not None and one.by_slot for one in (self.gate_up_proj, self.down_proj))

    def __call__(
        self, rows: Float[Array, "rows width"], order: SortedTokens, activate: Callable[[Array], Array], routing: Any
    ) -> Float[Array, "rows width"]:
        """Transforms each row by its expert."""
        gate, up = self._gate_and_up(rows, order, routing)
        limit, alpha = self.config.swiglu_limit, self.config.swiglu_alpha
        if limit is None:
            return self.down_proj(activate(gate) * up, order, routing)
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
        return self.down_proj((up + 1) * gate * jax.nn.sigmoid(alpha * gate), order, routing)

    def _gate_and_up(self, rows: Array, order: SortedTokens, routing: Any) -> tuple[Array, Array]:
        both = None if self.gate_up_proj is None else self.gate_up_proj(rows, order, routing)
        if self.config.fused_experts:
            assert both is not None
            return both[:, ::2], both[:, 1::2]
        gate, up = self.gate_proj(rows, order, routing), self.up_proj(rows, order, routing)
        return (gate, up) if both is None else (gate + both[:, ::2], up + both[:, 1::2])


class ExpertMatrix(nnx.Module):
    """A matrix of every expert.

    Attributes:
        kernel: [expert, in, out], or [layer, expert, in, out] outside the scan; an array or a `FrozenWeight`.
        bias: [expert, out], likewise, or None.
    """

    by_slot = False
    """Whether its call needs tiles by slot."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        use_bias: bool,
        *,
        layers: int,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.kernel = nnx.Param(random_weight(rngs, shape, layers, param_dtype))
        bias = (shape[0], shape[2])
        self.bias = nnx.Param(random_weight(rngs, bias, layers, param_dtype)) if use_bias else None

    def __call__(
        self, x: Float[Array, "rows in"], order: SortedTokens, routing: Any = None
    ) -> Float[Array, "rows out"]:
        """Multiplies each row by its expert's matrix; `routing` is for adapted ones and ignored here."""
        bias = None if self.bias is None else self.bias.get_value()
        return expert_product(x, self.kernel.get_value(), bias, order, self.dtype)


def expert_product(
    x: Float[Array, "rows in"],
    w: Float[Array, "experts in out"] | FrozenWeight,
    bias: Float[Array, "experts out"] | None,
    order: SortedTokens,
    dtype: DTypeLike,
) -> Float[Array, "rows out"]:
    """Multiplies each row by its expert's matrix, in `dtype`, and adds its expert's bias if there is any."""
    y = grouped_product(order.tile, x.astype(dtype), dense(w, dtype).astype(dtype), order.tiles)
    if bias is not None:
        y = y + jnp.take(bias.astype(dtype), order.experts, axis=0, mode="clip")
    return checkpoint_name(y, PRODUCT)


class MixtureOfExperts(nnx.Module):
    """A router and its experts, in the place of a block's MLP."""

    def __init__(
        self,
        config: ModelConfig,
        activate: Callable[[Array], Array],
        *,
        layers: int,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.config, self.activate, self.dtype = config, activate, dtype
        kinds: dict[str, Any] = {"layers": layers, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.router = Linear(config.hidden_size, config.experts, config.experts_bias, **kinds)
        self.experts = Experts(config, **kinds)

    def __call__(self, x: Float[Array, "batch length width"], routing: Any) -> Float[Array, "batch length width"]:
        """Transforms each token by its experts, whose results are added by weight in float32.

        Args:
            x: Tokens.
            routing: Of adapters. Where experts have any it gives ``token_slots(count)``, int32 [count], the slot of
                each token, and ``slots``, how many there are.
        """
        tokens = x.reshape(-1, x.shape[-1])
        weights, chosen = choose(self.router(tokens), self.config.active_experts, normed=self.config.norm_experts)
        if routing is None or not self.experts.by_slot:
            order = sort_tokens(chosen, self.config.experts)
        else:
            order = sort_by_slot(chosen, self.config.experts, routing.token_slots(tokens.shape[0]), routing.slots)
        rows = take_rows(tokens, order.places // self.config.active_experts, order.rows)
        made = self.experts(rows, order, self.activate, routing)
        made = take_rows(made, order.rows.reshape(-1), order.places[:, None])
        made = made.reshape(*chosen.shape, -1).astype(jnp.float32)
        return jnp.einsum("nk,nkd->nd", weights, made).astype(self.dtype).reshape(x.shape)


def choose(
    logits: Float[Array, "tokens experts"], active: int, *, normed: bool
) -> tuple[Float[Array, "tokens active"], Int[Array, "tokens active"]]:
    """Returns the likeliest experts of each token, and the weight of each.

    Args:
        logits: Of the router, in the compute dtype, as transformers has them.
        active: Experts of a token.
        normed: Whether its weights add up to 1.

    Returns:
        Weights, float32, and experts, int32, the likeliest first.
    """
    weights, chosen = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), active)
    if normed:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return weights, chosen.astype(jnp.int32)


def sort_tokens(chosen: Int[Array, "tokens active"], experts: int) -> SortedTokens:
    """Sorts tokens by expert.

    Args:
        chosen: int32, the experts of each token.
        experts: How many there are.
    """
    flat = chosen.reshape(-1)
    return _sorted_by(flat, chosen, experts, _sizes(flat, experts))


def sort_by_slot(
    chosen: Int[Array, "tokens active"], experts: int, slots: Int[Array, " tokens"], most: int
) -> SortedTokens:
    """Sorts tokens by expert, and those of an expert by slot.

    Args:
        chosen: int32, the experts of each token.
        experts: How many there are.
        slots: int32, the slot of each token.
        most: Slots that there are.
    """
    groups = (chosen * most + slots[:, None]).reshape(-1)
    sizes = _sizes(groups, experts * most)
    order = _sorted_by(groups, chosen, experts, jnp.sum(sizes.reshape(experts, most), axis=1, dtype=jnp.int32))
    count, tile = groups.shape[0], tile_of(groups.shape[0], experts * most)
    return order._replace(by_slot=tiles_of(sizes, count, tile), slot_tile=tile)


def _sizes(keys: Int[Array, " rows"], count: int) -> Int[Array, " count"]:
    return jnp.sum(keys[:, None] == jnp.arange(count, dtype=jnp.int32)[None, :], axis=0, dtype=jnp.int32)


def _sorted_by(keys: Array, chosen: Array, experts: int, sizes: Array) -> SortedTokens:
    """Sorts tokens by keys that grow with their experts, of which `sizes` rows are each's."""
    count, tile = keys.shape[0], tile_of(keys.shape[0], experts)
    places = jnp.argsort(keys, stable=True).astype(jnp.int32)
    rows = jnp.zeros_like(places).at[places].set(jnp.arange(count, dtype=jnp.int32), unique_indices=True)
    padded = jnp.pad(places, (0, tile))
    own = chosen.reshape(-1)[padded]
    return SortedTokens(padded, rows.reshape(chosen.shape), own, tiles_of(sizes, count, tile), tile)


def tile_of(rows: int, experts: int) -> int:
    """Returns the rows of a tile: about as many as an expert has, a power of two."""
    even = -(-rows // experts)
    return min(max(SMALLEST_TILE, 1 << (even - 1).bit_length()), LARGEST_TILE[_device()])


def _device() -> str:
    return "cpu" if jax.default_backend() == "cpu" else "accelerator"


def tiles_of(sizes: Int[Array, " experts"], rows: int, tile: int) -> Tiles:
    """Cuts sorted rows into tiles.

    Args:
        sizes: int32, rows of each expert.
        rows: Their sum.
        tile: Rows of a tile.
    """
    experts = sizes.shape[0]
    busy = min(experts, rows)
    most = (rows - busy) // tile + busy
    tiles = -(-sizes // tile)
    ends = jnp.cumsum(tiles, dtype=jnp.int32)
    at = jnp.arange(most, dtype=jnp.int32)
    owners = jnp.minimum(jnp.sum(ends[None, :] <= at[:, None], axis=1, dtype=jnp.int32), experts - 1)
    firsts = jnp.cumsum(sizes, dtype=jnp.int32) - sizes
    starts = firsts[owners] + (at - (ends - tiles)[owners]) * tile
    return Tiles(owners, starts, (firsts + sizes)[owners], ends[-1])


@jax.custom_vjp
def take_rows(
    x: Float[Array, "rows width"], which: Int[Array, " taken"], readers: Int[Array, "rows times"]
) -> Float[Array, "taken width"]:
    """Returns rows of `x`; its gradient is gathered, too, where a scatter would add in any order.

    Args:
        x: The rows.
        which: int32, those to return.
        readers: int32, the places in `which` of each row.
    """
    return jnp.take(x, which, axis=0, mode="clip")


def _take_forward(x: Array, which: Array, readers: Array) -> tuple[Array, Array]:
    return take_rows(x, which, readers), readers


def _take_backward(readers: Array, dy: Array) -> tuple[Array, None, None]:
    parts = jnp.take(dy, readers, axis=0, mode="clip")
    return jnp.sum(parts.astype(jnp.float32), axis=1).astype(dy.dtype), None, None


take_rows.defvjp(_take_forward, _take_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def grouped_product(
    tile: int, x: Float[Array, "rows in"], w: Float[Array, "experts in out"], tiles: Tiles
) -> Float[Array, "rows out"]:
    """Multiplies each row by its expert's matrix; differentiable in `x`, the matrices are frozen.

    A tile at a time, or a few, of so many as there are: `jax.lax.ragged_dot` multiplies every row by every expert's
    matrix on CPUs, and on GPUs by default.

    Args:
        tile: Rows of a tile.
        x: Rows sorted by expert, and `tile` more that mean nothing.
        w: The matrices.
        tiles: Of the rows.

    Returns:
        In the dtype of `x`, sums in float32; rows that mean nothing are any numbers.
    """
    return _each_tile(tile, x, w, tiles, contracted=1)


def _product_forward(tile: int, x: Array, w: Array, tiles: Tiles) -> tuple[Array, tuple[Array, Tiles]]:
    return grouped_product(tile, x, w, tiles), (w, tiles)


def _product_backward(tile: int, kept: tuple[Array, Tiles], dy: Array) -> tuple[Array, None, None]:
    w, tiles = kept
    return _each_tile(tile, dy, w, tiles, contracted=2), None, None


grouped_product.defvjp(_product_forward, _product_backward)


def _each_tile(tile: int, x: Array, w: Array, tiles: Tiles, contracted: int) -> Array:
    """Multiplies tile after tile, or several at once, by its expert's matrix, of which this axis is summed over."""
    made = jnp.zeros((x.shape[0], w.shape[3 - contracted]), x.dtype)
    together = min(TOGETHER_BYTES[_device()] // (w[0].size * w.dtype.itemsize), tiles.experts.shape[0])
    if together > 1:
        return _tiles_together(tile, x, w, tiles, contracted, made, together)

    def step(at: Array, made: Array) -> Array:
        own = jax.lax.dynamic_index_in_dim(w, tiles.experts[at], keepdims=False)
        rows = jax.lax.dynamic_slice_in_dim(x, tiles.starts[at], tile)
        sums = (((1,), (contracted - 1,)), ((), ()))
        product = jax.lax.dot_general(rows, own, sums, preferred_element_type=jnp.float32).astype(x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(made, product, tiles.starts[at], 0)

    # In their order: what a tile makes of rows that are the next expert's is overwritten by that one's.
    return jax.lax.fori_loop(0, tiles.used, step, made)


def _tiles_together(tile: int, x: Array, w: Array, tiles: Tiles, contracted: int, made: Array, together: int) -> Array:
    """Does the same for so many tiles in each turn; what a tile makes of the next expert's rows is left out."""
    *parts, used = tiles
    experts, starts, ends = (jnp.pad(part, (0, -part.shape[0] % together)) for part in parts)

    def step(turn: Array, made: Array) -> Array:
        these = [jax.lax.dynamic_slice_in_dim(part, turn * together, together) for part in (experts, starts, ends)]
        places = these[1][:, None] + jnp.arange(tile, dtype=jnp.int32)[None, :]
        rows, own = (jnp.take(*pair, axis=0, mode="clip") for pair in ((x, places), (w, these[0])))
        sums = (((2,), (contracted,)), ((0,), (0,)))
        product = jax.lax.dot_general(rows, own, sums, preferred_element_type=jnp.float32).astype(x.dtype)
        return made.at[jnp.where(places < these[2][:, None], places, x.shape[0])].set(product, mode="drop")

    return jax.lax.fori_loop(0, -(-used // together), step, made)
