"""Structured pruning: scores of heads and blocks of neurons of a dense model, by their weights."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlm.families.projections import width_of
from twistjax.calibration import Statistics
from twistjax.training.gather_scatter import sides
from twistjax.training.importance import OUTPUTS, activation_scores, by_unit
from twistjax.training.units import Kept, Units, kept_of


def choose_units(
    weights: Mapping[str, Array],
    units: Units,
    kappa: float,
    method: Literal["magnitude", "wanda"],
    statistics: Sequence[Statistics] = (),
) -> Kept:
    """Returns the best units of every layer that is not protected, as many as a subnetwork of kappa keeps.

    Args:
        weights: The full model's by path.
        units: Its units.
        kappa: The share to keep.
        method: ``magnitude`` adds up the squares of all weights of a unit; ``wanda`` adds up |w| · ‖x‖ over its share
            of the output projection.
        statistics: Of every layer, for ``wanda``.
    """
    heads, blocks = by_unit(units, *_scores(weights, units, method, statistics)).order()
    heads, blocks = heads[..., : kept_of(units.heads, kappa)], blocks[..., : kept_of(units.blocks, kappa)]
    return units.kept(jnp.sort(heads, axis=-1), jnp.sort(blocks, axis=-1))


def _scores(
    weights: Mapping[str, Array], units: Units, method: str, statistics: Sequence[Statistics]
) -> tuple[Float[Array, "layers heads"], Float[Array, "layers neurons"]]:
    """Returns a score of every query head and every neuron."""
    config = units.config
    depth, heads, kv_heads, width = units.depth, config.num_heads, config.num_kv_heads, config.head_dim
    if method == "wanda":
        norms = [{key: jnp.sqrt(jnp.diagonal(layer[key])) for key in OUTPUTS.values()} for layer in statistics]
        return activation_scores(config, weights, norms)
    of_heads = jnp.zeros((depth, heads), jnp.float32)
    of_kv_heads = jnp.zeros((depth, kv_heads), jnp.float32)
    neurons = jnp.zeros((depth, config.intermediate_size), jnp.float32)
    for path, side in sides(config).items():
        square = jnp.square(weights[path].astype(jnp.float32))
        along = square if square.ndim == 2 else jnp.sum(square, axis=2 - side.axis)
        ends = accumulate(width_of(features, config) for features in side.holds)
        for features, part in zip(side.holds, jnp.split(along, tuple(ends)[:-1], axis=1), strict=True):
            if features == "neurons":
                neurons += part
            elif features == "heads":
                of_heads += jnp.sum(part.reshape(depth, heads, width), axis=2)
            else:
                of_kv_heads += jnp.sum(part.reshape(depth, kv_heads, width), axis=2)
    return of_heads + jnp.repeat(of_kv_heads / units.group, units.group, axis=1), neurons
