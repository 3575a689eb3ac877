"""Layers whose frozen weights are sharded: a layer's are gathered while the one before it computes, used, and dropped.

Neither pass waits for more than its first gather, and no more than two layers' weights are ever whole: the backward
pass gathers them again rather than keep them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxlm.devices.layer_loop import at, joined, members
from jaxlm.families.schedule import Period, PeriodLayer

Run = Callable[[Array, Any, Any, Any, Any], Array]
"""(x, weights, trained, fixed, shared) -> x, of one layer; the first four are that layer's own."""


class GatheredPeriod(NamedTuple):
    """The execution of layers that repeat.

    Attributes:
        period: Which layers they are.
        runs: Each of them.
        gather: Makes a layer's weights of its shards.
    """

    period: Period
    runs: tuple[Run, ...]
    gather: Callable[[Any], Any]


@dataclass(frozen=True)
class _Recipe:
    """The recipe of a layer's backward function: leaf i is saved, or is leaf `place` of what is known."""

    structure: Any
    known: tuple[int | None, ...]


@jax.tree_util.register_pytree_node_class
class _Saved:
    """Residuals of a layer's forward pass for its backward pass: no weights, nothing that is at hand anyway."""

    def __init__(self, leaves: Sequence[Array], recipe: _Recipe):
        self.leaves, self.recipe = leaves, recipe

    @classmethod
    def of(cls, pull: Any, known: Any) -> "_Saved":
        leaves, structure = jax.tree.flatten(pull)
        places = {id(leaf): place for place, leaf in enumerate(jax.tree.leaves(known))}
        found = tuple(places.get(id(leaf)) for leaf in leaves)
        kept = [leaf for leaf, place in zip(leaves, found, strict=True) if place is None]
        return cls(kept, _Recipe(structure, found))

    def restore(self, known: Any) -> Any:
        at_hand, kept = jax.tree.leaves(known), iter(self.leaves)
        leaves = [next(kept) if place is None else at_hand[place] for place in self.recipe.known]
        return jax.tree.unflatten(self.recipe.structure, leaves)

    def tree_flatten(self) -> tuple[Any, _Recipe]:
        return (self.leaves,), self.recipe

    @classmethod
    def tree_unflatten(cls, recipe: _Recipe, children: Any) -> "_Saved":
        return cls(children[0], recipe)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_gathered(layers: GatheredPeriod, x: Array, shards: Any, trained: Any, fixed: Any, shared: Any) -> Array:
    """Runs `x` through all turns of a period; differentiable in `x` and `trained`.

    Args:
        layers: How.
        x: Goes into the first layer.
        shards: This device's part of the frozen weights, by stack; leaves [layer, ...].
        trained: What trains, as `jaxlm.devices.layer_loop.turns` has it.
        fixed: Whatever else differs between layers, likewise.
        shared: Arrays that are the same for all layers.
    """

    def step(run: Run, carry: Any, layer: Any) -> tuple[Any, None]:
        x, weights = carry
        following, _, trained, fixed = layer
        return (run(x, weights, trained, fixed, shared), layers.gather(following)), None

    return _loop(layers, step, x, None, shards, (trained, fixed), None, ahead=1)[0][0]


def _forward(
    layers: GatheredPeriod, x: Array, shards: Any, trained: Any, fixed: Any, shared: Any
) -> tuple[Array, tuple[Any, ...]]:
    def step(run: Run, carry: Any, layer: Any) -> tuple[Any, _Saved]:
        x, weights = carry
        following, _, trained, fixed = layer
        upcoming = layers.gather(following)
        y, pull = jax.vjp(lambda x, trained: run(x, weights, trained, fixed, shared), x, trained)
        return (y, upcoming), _Saved.of(pull, (weights, trained, fixed, shared))

    (x, last), saved = _loop(layers, step, x, None, shards, (trained, fixed), None, ahead=1)
    # Of a layer that repeats alone the last one's weights are at hand.
    return x, (saved, last if len(layers.runs) == 1 else None, shards, trained, fixed, shared)


def _backward(layers: GatheredPeriod, kept: Any, dy: Array) -> tuple[Any, ...]:
    saved, weights, shards, trained, fixed, shared = kept
    # Else XLA finds that the forward pass has gathered the same, and keeps all of it.
    shards, dy = jax.lax.optimization_barrier((shards, dy))

    def step(_: Run, carry: Any, layer: Any) -> tuple[Any, Any]:
        dy, weights = carry
        following, saved, trained, fixed = layer
        upcoming = layers.gather(following)
        dx, d_trained = saved.restore((weights, trained, fixed, shared))(dy)
        return (dx, upcoming), d_trained

    (dx, _), gradients = _loop(layers, step, dy, weights, shards, (trained, fixed), saved, ahead=-1)
    return dx, None, joined(gradients, layers.period, len(shards), axis=1), None, None


run_gathered.defvjp(_forward, _backward)


def _loop(
    layers: GatheredPeriod,
    step: Any,
    x: Array,
    weights: Any,
    shards: Any,
    stacks: tuple[Any, ...],
    own: Any,
    *,
    ahead: int,
) -> tuple[tuple[Array, Any], tuple[Any, ...]]:
    """Takes `step` from layer to layer, `ahead` = 1 up or -1 down, and gives it the next one's shards too.

    Args:
        layers: How.
        step: (run, (x, weights), (shards of the next, own, each of `stacks`)) -> (x, weights of the next), made.
        x: Goes into the first step.
        weights: Of that step; None gathers them.
        shards: As `run_gathered` has them.
        stacks: Trees that each step has its layer's part of, as `turns` has them.
        own: Of each member, leaves [turn, ...]; None is none.
        ahead: The direction.

    Returns:
        What comes out of the last step with the weights gathered in it, and what each member has made, leaves
        [turn, ...].
    """
    period, count = layers.period, len(layers.runs)
    order = range(count)[::ahead]
    unrolled = count > 1
    once = {run: jax.jit(partial(step, run)) if unrolled else partial(step, run) for run in layers.runs}

    def shards_of(member: PeriodLayer, turn: Any) -> Any:
        place = member.place + jnp.clip(turn, 0, period.repeats - 1) * period.steps[member.stack]
        return at(shards[member.stack], place)

    def take_turn(carry: Any, turn: Any) -> tuple[Any, Any]:
        number, own, stacks = turn
        parts = [members(tree, period) for tree in stacks]
        made: list[Any] = [None] * count
        for position, place in enumerate(order):
            if unrolled:
                # Else XLA may gather all layers before it computes the first.
                carry, number = jax.lax.optimization_barrier((carry, number))
            last = position + 1 == count
            upcoming = period.members[order[0] if last else order[position + 1]]
            following = shards_of(upcoming, number + ahead if last else number)
            layer = (following, None if own is None else own[place], *(part[place] for part in parts))
            carry, made[place] = once[layers.runs[place]](carry, layer)
        return carry, tuple(made)

    start = period.members[order[0]], jnp.int32(0 if ahead > 0 else period.repeats - 1)
    carry = x, layers.gather(shards_of(*start)) if weights is None else weights
    scanned = jnp.arange(period.repeats, dtype=jnp.int32), own, stacks
    if period.repeats == 1:
        carry, made = take_turn(carry, (jnp.int32(0), *jax.tree.map(lambda leaf: leaf[0], scanned[1:])))
        return carry, jax.tree.map(lambda leaf: leaf[None], made)
    carry, made = jax.lax.scan(take_turn, carry, scanned, reverse=ahead < 0)
    return carry, made
