"""Adapted experts: tokens sorted by expert and slot meet the adapter that their slot has for their expert."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from altojax.device.multi_lora.routing import LoRA, Routing
from jaxlm.families.names import Projection
from jaxlm.models.experts import ExpertMatrix, SortedTokens, Tiles, expert_product, take_rows
from pallas_kernels import PRODUCT


class MultiLoRAExperts(nnx.Module):
    """A frozen matrix of every expert with one adapter a slot, which has an A and a B for each expert.

    Attributes:
        kernel: [layer, expert, in, out] (inside the scan: [expert, in, out]), the base's own Variable, or None: then
            what it computes is added to other matrices' outputs.
        bias: [layer, expert, out] or None.
        lora_a: float32 [layer, slot, in * expert, rank]; a slot of smaller rank has zero columns.
        lora_b: float32 [layer, slot, rank, out * expert].
    """

    by_slot = True

    def __init__(
        self,
        base: ExpertMatrix | None,
        projection: Projection,
        *,
        slots: int,
        rank: int,
        dtype: DTypeLike,
        zeros: Callable[[str, tuple[int, ...]], Array],
    ):
        """Wraps `base`; all slots start empty, which is the identity."""
        self.experts, self.dtype = projection.experts, dtype
        self.kernel: nnx.Param | None = None if base is None else base.kernel
        self.bias: nnx.Param | None = None if base is None else base.bias
        self.lora_a = LoRA(zeros("lora_a", (len(projection.layers), slots, projection.in_features, rank)))
        self.lora_b = LoRA(zeros("lora_b", (len(projection.layers), slots, rank, projection.out_features)))

    def __call__(
        self, x: Float[Array, "rows in"], order: SortedTokens, routing: Routing | None = None
    ) -> Float[Array, "rows out"]:
        """Returns each row's product with its expert's matrix, and with a routing that of its slot's adapter added."""
        if self.kernel is None:
            y = jnp.zeros((x.shape[0], self.lora_b.shape[-1] // self.experts), self.dtype)
        else:
            bias = None if self.bias is None else self.bias.get_value()
            y = expert_product(x, self.kernel.get_value(), bias, order, self.dtype)
        if routing is None:
            return y
        x, a, b = x.astype(self.dtype), self.lora_a[...], self.lora_b[...]
        return y + checkpoint_name(grouped_lora(x, a, b, routing.scale, order, self.experts), PRODUCT)


def grouped_lora(
    x: Float[Array, "rows in"],
    a: Float[Array, "slots in_experts rank"],
    b: Float[Array, "slots rank out_experts"],
    scale: Float[Array, " slots"],
    order: SortedTokens,
    experts: int,
) -> Float[Array, "rows out"]:
    """Multiplies each row by the adapter of its expert and slot: scale · (x · A) · B, differentiable in x, a and b.

    A row meets no other adapter, not even times zero, so what is not finite in one stays there.

    Args:
        x: Rows sorted by `jaxlm.models.experts.sort_by_slot`.
        a: float32, the features of A with the expert's number last.
        b: float32, likewise those of B.
        scale: float32.
        order: Of the rows.
        experts: How many there are.

    Returns:
        In the dtype of `x`, sums in float32; rows that mean nothing are any numbers.
    """
    tiles, tile, slots = order.by_slot, order.slot_tile, scale.shape[0]
    assert tiles is not None
    places, own, rows = _tile_rows(tiles, tile, x.shape[0])
    tiled = take_rows(x, places, rows[:, None]).reshape(-1, tile, x.shape[1])
    tiled = jnp.where(own, tiled, jnp.zeros_like(tiled))
    groups = experts * slots
    a = jnp.moveaxis(a.reshape(slots, -1, experts, a.shape[-1]), 2, 0).reshape(groups, x.shape[1], -1)
    b = jnp.moveaxis(b.reshape(slots, b.shape[1], -1, experts), 3, 0).reshape(groups, b.shape[1], -1)
    # Gathered before they are rounded, so that gradients are summed over tiles in float32.
    a, b = (of_tiles(one, tiles.experts).astype(x.dtype) for one in (a, b))
    h = jnp.einsum("mtk,mkr->mtr", tiled, a, preferred_element_type=jnp.float32)
    h = (h * scale[tiles.experts % slots][:, None, None]).astype(x.dtype)
    y = jnp.einsum("mtr,mrn->mtn", h, b, preferred_element_type=jnp.float32).astype(x.dtype)
    y = jnp.where(own, y, jnp.zeros_like(y))
    return take_rows(y.reshape(-1, y.shape[-1]), rows, places[:, None])


def _tile_rows(
    tiles: Tiles, tile: int, rows: int
) -> tuple[Int[Array, " tiled"], Bool[Array, "tiles tile 1"], Int[Array, " rows"]]:
    """Returns the row at each place of the tiles, whether it is the tile's own, and the place of each row."""
    count = tiles.experts.shape[0]
    places = tiles.starts[:, None] + jnp.arange(tile, dtype=jnp.int32)[None, :]
    there = jnp.arange(count, dtype=jnp.int32)[:, None] < tiles.used
    own = (places < tiles.ends[:, None]) & there
    # A row's tile is the last of those that begin at it or before it.
    firsts = jnp.where(there[:, 0], tiles.starts, rows)
    at = jnp.arange(rows, dtype=jnp.int32)
    tile_of_row = jnp.searchsorted(firsts, at, side="right").astype(jnp.int32) - 1
    of_rows = tile_of_row * tile + at - firsts[tile_of_row]
    return places.reshape(-1), own[:, :, None], jnp.clip(of_rows, 0, count * tile - 1)


@jax.custom_vjp
def of_tiles(w: Float[Array, "groups *matrix"], groups: Int[Array, " tiles"]) -> Float[Array, "tiles *matrix"]:
    """Returns each tile's matrix; its gradient is summed in the order of tiles, where a scatter would add in any.

    Args:
        w: One a group.
        groups: int32, in rising order.
    """
    return jnp.take(w, groups, axis=0, mode="clip")


def _of_tiles_forward(w: Array, groups: Array) -> tuple[Array, tuple[Array, Array]]:
    return of_tiles(w, groups), (groups, jnp.zeros((w.shape[0], 0), w.dtype))


def _of_tiles_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, None]:
    groups, like = kept
    count = like.shape[0]
    firsts = jnp.concatenate([jnp.ones(1, bool), groups[1:] != groups[:-1]])

    def join(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        (begun, before), (begins, added) = left, right
        own = begins.reshape(-1, *(1,) * (added.ndim - 1))
        return begun | begins, jnp.where(own, added, before + added)

    _, sums = jax.lax.associative_scan(join, (firsts, dy))
    ends = jnp.searchsorted(groups, jnp.arange(count, dtype=jnp.int32), side="right").astype(jnp.int32)
    begins = jnp.searchsorted(groups, jnp.arange(count, dtype=jnp.int32), side="left").astype(jnp.int32)
    last = jnp.take(sums, ends - 1, axis=0, mode="clip")
    found = (ends > begins).reshape(-1, *(1,) * (dy.ndim - 1))
    return jnp.where(found, last, jnp.zeros_like(last)).astype(like.dtype), None


of_tiles.defvjp(_of_tiles_forward, _of_tiles_backward)
