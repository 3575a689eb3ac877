"""Layers one after the other, by their schedule: those that repeat in a compiled loop, each other in its place."""

from collections.abc import Callable, Sequence
from functools import cache as remembered
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlm.devices.frozen_weight import all_dense, is_packed
from jaxlm.devices.layer_gather import GatheredPeriod, run_gathered
from jaxlm.devices.layer_loop import at, joined, members, of_all_turns, turns
from jaxlm.devices.mesh import MeshAxes
from jaxlm.families.config import ModelConfig
from jaxlm.families.schedule import LayerKind, Period
from pallas_kernels import PRODUCT

REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "full": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(PRODUCT),
    ),
}

Cache = tuple[tuple[Array, ...], ...]
"""What the mixers of every stack keep of the tokens before, layers first."""


class LayerRun(NamedTuple):
    """How layers are computed; see `jaxlm.models.transformer.Transformer`.

    Attributes:
        config: The model.
        dtype: Of the computation.
        remat: What the backward pass recomputes.
        mesh_axes: The mesh that the model is called inside of.
    """

    config: ModelConfig
    dtype: DTypeLike
    remat: str
    mesh_axes: MeshAxes | None

    @property
    def gathering(self) -> MeshAxes | None:
        """The mesh, where weights are made of parts."""
        return self.mesh_axes if self.mesh_axes is not None and self.mesh_axes.gathers else None

    def recomputed(self, run_layer: Callable[..., Any], period: Period) -> Callable[..., Any]:
        """Returns a layer whose backward pass recomputes what `remat` says."""
        if self.remat == "none":
            return run_layer
        # Unrolled, XLA's common-subexpression elimination would undo the recomputation; a loop prevents that.
        return jax.checkpoint(run_layer, prevent_cse=period.repeats == 1, policy=REMAT_POLICIES[self.remat])


def run_layers(
    how: LayerRun,
    periods: Sequence[Period],
    blocks: Sequence[tuple[Any, nnx.State]],
    x: Float[Array, "batch length width"],
    shared: tuple[Any, Any],
    cache: Cache,
) -> tuple[Float[Array, "batch length width"], Cache]:
    """Runs `x` through all layers.

    Args:
        how: How.
        periods: The model's schedule.
        blocks: The block of every stack, split.
        x: What goes into the first layer.
        shared: Positions and routing.
        cache: Of every stack; nothing outside generation.

    Returns:
        What comes out of the last layer, and the cache with this call's tokens in it.
    """
    if not cache and (how.gathering is not None or any(is_packed(state) for _, state in blocks)):
        for period in periods:
            x = _run_ahead(how, period, blocks, x, shared)
        return x, ()
    made = []
    for period in periods:
        x, extended = _run_period(how, period, blocks, x, shared, cache or (None,) * len(blocks))
        made.append(extended)
    return x, tuple(_one_after_another(own) for own in zip(*made, strict=True)) if cache else ()


def _one_after_another(parts: Sequence[Any]) -> Any:
    own = [part for part in parts if part is not None]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *own) if len(own) > 1 else own[0]


def _run_period(
    how: LayerRun,
    period: Period,
    blocks: Sequence[tuple[Any, nnx.State]],
    x: Array,
    shared: tuple[Any, Any],
    cache: Sequence[Any],
) -> tuple[Array, tuple[Any, ...]]:
    """Runs the layers of a period; returns what comes out, and the cache of its layers by stack."""
    mesh, (places, routing) = how.gathering, shared
    split = [nnx.split_state(state, nnx.Param, nnx.filterlib.Everything()) for _, state in blocks]
    # A loop over a part of a stack takes weights from where they lie: a slice of them all would be a copy.
    own = [period.steps[number] * period.repeats for number in range(len(blocks))]
    lie = [period.repeats > 1 and count < len(one.layers) for count, one in zip(own, how.config.stacks, strict=True)]

    @remembered
    def layer_of(stack: int, kind: LayerKind) -> Callable[..., tuple[Array, Any]]:
        def run_layer(x: Array, weights: Any, place: Any, rest: Any, cached: Any) -> tuple[Array, Any]:
            weights = weights if place is None else at(weights, place)
            weights = weights if mesh is None else mesh.layer(weights)
            return nnx.merge(blocks[stack][0], weights, rest)(x, places, routing, kind, cached)

        run = how.recomputed(run_layer, period)
        return jax.jit(run) if len(period.members) > 1 else run  # traced and lowered once for all layers of a kind

    def take_turn(x: Array, turn: Any) -> tuple[Array, Any]:
        number, *stacks = turn
        found = []
        for member, weights, rest, cached in zip(
            period.members, *(members(one, period) for one in stacks), strict=True
        ):
            place = None
            if lie[member.stack]:
                weights, place = split[member.stack][0], member.place + number * period.steps[member.stack]
            x, extended = layer_of(member.stack, member.kind)(x, weights, place, rest, cached)
            found.append(extended)
        return x, joined(found, period, len(blocks))

    frozen = [nnx.State({}) if apart else weights for apart, (weights, _) in zip(lie, split, strict=True)]
    stacks = [turns(one, period) for one in (frozen, [rest for _, rest in split], cache)]
    if period.repeats > 1:
        x, made = jax.lax.scan(take_turn, x, (jnp.arange(period.repeats, dtype=jnp.int32), *stacks))
        return x, of_all_turns(made)
    return take_turn(x, (0, *jax.tree.map(lambda leaf: leaf[0], stacks)))


def _run_ahead(
    how: LayerRun, period: Period, blocks: Sequence[tuple[Any, nnx.State]], x: Array, shared: tuple[Any, Any]
) -> Array:
    """Runs layers whose weights are made of shards, or of packed arrays, a layer ahead of their use."""
    parts = (nnx.split_state(state, nnx.Param, _is_float, nnx.filterlib.Everything()) for _, state in blocks)
    weights, trained, fixed = zip(*parts, strict=True)

    @remembered
    def layer_of(stack: int, kind: LayerKind) -> Callable[..., Array]:
        def run_layer(x: Array, weights: Any, trained: Any, fixed: Any, shared: Any) -> Array:
            return nnx.merge(blocks[stack][0], weights, trained, fixed)(x, *shared, kind)[0]

        return how.recomputed(run_layer, period)

    def gather(shards: Any) -> Any:
        return all_dense(shards if how.mesh_axes is None else how.mesh_axes.layer(shards), how.dtype)

    runs = tuple(layer_of(member.stack, member.kind) for member in period.members)
    layers = GatheredPeriod(period, runs, gather)
    return run_gathered(layers, x, weights, turns(trained, period), turns(fixed, period), shared)


def _is_float(_: Any, variable: nnx.Variable) -> bool:
    return jnp.issubdtype(variable.get_value().dtype, jnp.floating)
