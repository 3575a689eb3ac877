"""Layers of a period, taken from the stacks that hold them, and what they make, stacked again.

Trees are in tuples by number of their stack; a stack that has no layer in the period is None there.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.families.schedule import Period


def turns(stacks: Sequence[Any], period: Period) -> tuple[Any, ...]:
    """Returns the layers of every turn of a period: leaves [layer, ...] as [turn, layer of the turn, ...]."""

    def of(number: int, tree: Any) -> Any:
        step = period.steps[number]
        if not step:
            return None
        first, count = period.first(number), step * period.repeats
        return jax.tree.map(
            lambda leaf: jax.lax.slice_in_dim(leaf, first, first + count).reshape(
                period.repeats, step, *leaf.shape[1:]
            ),
            tree,
        )

    return tuple(of(number, tree) for number, tree in enumerate(stacks))


def members(stacks: Sequence[Any], period: Period) -> list[Any]:
    """Returns what each layer of a turn has of trees with leaves [layer of the turn, ...]."""
    layers = [apart(tree, period.steps[number]) for number, tree in enumerate(stacks)]
    return [layers[one.stack][one.place - period.first(one.stack)] for one in period.members]


def joined(found: Sequence[Any], period: Period, stacks: int, axis: int = 0) -> tuple[Any, ...]:
    """Returns the inverse of `members`: what each layer of a turn has made, by stack, layers along an axis."""

    def of(number: int) -> Any:
        own = [made for made, one in zip(found, period.members, strict=True) if one.stack == number]
        return jax.tree.map(lambda *parts: jnp.stack(parts, axis), *own) if own else None

    return tuple(of(number) for number in range(stacks))


def of_all_turns(stacks: Any) -> Any:
    """Returns leaves [turn, layer of the turn, ...] as [layer, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stacks)


def at(stacked: Any, place: Any) -> Any:
    """Returns the layer at a traced place of a tree of stacked leaves."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, keepdims=False), stacked)


def apart(stacked: Any, count: int) -> list[Any]:
    """Returns the layers of a tree of stacked leaves, each a tree of its own."""
    leaves, structure = jax.tree.flatten(stacked)
    parts = [[part[0] for part in jax.lax.split(leaf, (1,) * count)] for leaf in leaves]
    return [jax.tree.unflatten(structure, [part[place] for part in parts]) for place in range(count)]
