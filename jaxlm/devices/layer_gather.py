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

Run = Callable[[Array, Any, Any, Any, Any], Array]
"""(x, weights, trained, fixed, shared) -> x, of one layer; the first four are that layer's own."""


class GatheredStack(NamedTuple):
    """The execution of a stack's layers.

    Attributes:
        run: One layer.
        gather: Makes a layer's weights of its shards.
        scans: One compiled layer for all, rather than each compiled in its place.
    """

    run: Run
    gather: Callable[[Any], Any]
    scans: bool


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
def run_gathered(stack: GatheredStack, x: Array, shards: Any, trained: Any, fixed: Any, shared: Any) -> Array:
    """Runs `x` through all layers; differentiable in `x` and `trained`.

    Args:
        stack: How.
        x: Goes into the first layer.
        shards: This device's part of the frozen weights; leaves [layer, ...].
        trained: What trains, likewise.
        fixed: Whatever else differs between layers, likewise.
        shared: Arrays that are the same for all layers.
    """

    def step(carry: Any, layer: Any) -> tuple[Any, None]:
        x, weights = carry
        following, trained, fixed = layer
        return (stack.run(x, weights, trained, fixed, shared), stack.gather(following)), None

    carry, _ = _loop(stack, step, (x, stack.gather(_at(shards, 0))), shards, (trained, fixed), ahead=1)
    return carry[0]


def _forward(stack: GatheredStack, x: Array, shards: Any, trained: Any, fixed: Any, shared: Any) -> tuple[Array, Any]:
    def step(carry: Any, layer: Any) -> tuple[Any, _Saved]:
        x, weights = carry
        following, trained, fixed = layer
        upcoming = stack.gather(following)
        y, pull = jax.vjp(lambda x, trained: stack.run(x, weights, trained, fixed, shared), x, trained)
        return (y, upcoming), _Saved.of(pull, (weights, trained, fixed, shared))

    carry, saved = _loop(stack, step, (x, stack.gather(_at(shards, 0))), shards, (trained, fixed), ahead=1)
    return carry[0], (saved, carry[1], shards, trained, fixed, shared)


def _backward(stack: GatheredStack, kept: Any, dy: Array) -> tuple[Any, ...]:
    saved, weights, shards, trained, fixed, shared = kept
    # Else XLA finds that the forward pass has gathered the same, and keeps all of it.
    shards, dy = jax.lax.optimization_barrier((shards, dy))

    def step(carry: Any, layer: Any) -> tuple[Any, Any]:
        dy, weights = carry
        following, saved, trained, fixed = layer
        upcoming = stack.gather(following)
        dx, d_trained = saved.restore((weights, trained, fixed, shared))(dy)
        return (dx, upcoming), d_trained

    carry, gradients = _loop(stack, step, (dy, weights), shards, (saved, trained, fixed), ahead=-1)
    return carry[0], None, gradients, None, None


run_gathered.defvjp(_forward, _backward)


def _loop(stack: GatheredStack, step: Any, carry: Any, shards: Any, layers: Any, *, ahead: int) -> tuple[Any, Any]:
    """Takes `step` from layer to layer, `ahead` = 1 up or -1 down, and gives it the next one's shards too."""
    count = jax.tree.leaves(shards)[0].shape[0]

    def following(place: Any) -> Any:
        return jnp.clip(place + ahead, 0, count - 1)

    if stack.scans:

        def body(carry: Any, scanned: Any) -> tuple[Any, Any]:
            place, layer = scanned
            return step(carry, (_at(shards, following(place)), *layer))

        return jax.lax.scan(body, carry, (jnp.arange(count, dtype=jnp.int32), layers), reverse=ahead < 0)
    once = jax.jit(step)  # traced and lowered once for all layers
    apart = _apart(layers, count)
    results: list[Any] = [None] * count
    for place in range(count) if ahead > 0 else reversed(range(count)):
        # Else XLA may gather all layers before it computes the first.
        carry, shards = jax.lax.optimization_barrier((carry, shards))
        upcoming = min(max(place + ahead, 0), count - 1)
        its = jax.tree.map(lambda leaf, at=upcoming: jax.lax.index_in_dim(leaf, at, keepdims=False), shards)
        carry, results[place] = once(carry, (its, *apart[place]))
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *results)


def _at(stacked: Any, place: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, keepdims=False), stacked)


def _apart(stacked: Any, count: int) -> list[Any]:
    """Returns the layers of a tree of stacked leaves, each a tree of its own."""
    leaves, structure = jax.tree.flatten(stacked)
    parts = [[part[0] for part in jax.lax.split(leaf, (1,) * count)] for leaf in leaves]
    return [jax.tree.unflatten(structure, [part[place] for part in parts]) for place in range(count)]
