"""Units of every layer in the order of their importance, by what the model makes of text before it is trained.

``activations`` scores a head or neuron as Wanda (2306.11695) does its weights: |w| · ‖x‖, summed over its share of the
output projection. ``gradients`` scores a unit by the square of what the loss would change, to first order, if it went
(1906.10771): the gradient in a gate on its output, one for each batch of rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from jaxlm.families.config import ModelConfig
from jaxlm.models.functional import Functional
from twistjax.calibration import Walk, exact_products
from twistjax.training.gather_scatter import ATTENTION_OUT, MLP_OUT, Weights
from twistjax.training.local_training import text_nll
from twistjax.training.units import Units

OUTPUTS = {ATTENTION_OUT: "self_attn.o_proj", MLP_OUT: "mlp.down_proj"}
"""Output projections and their keys."""


class Order(NamedTuple):
    """The units of every layer that is not protected, the most important first.

    Attributes:
        heads: int32; groups, in one row, or query heads within each group, in a row for each.
        blocks: int32.
    """

    heads: Int[Array, "layers rows heads"]
    blocks: Int[Array, "layers blocks"]


class UnitScores(NamedTuple):
    """How important each unit is, float32, in the shapes of an `Order`."""

    heads: Float[Array, "layers rows heads"]
    blocks: Float[Array, "layers blocks"]

    def order(self) -> Order:
        """Returns the units by their scores; of equal ones the first comes first."""
        return Order(*(jnp.argsort(-score, axis=-1, stable=True).astype(jnp.int32) for score in self))


def by_unit(units: Units, heads: Float[Array, "depth heads"], neurons: Float[Array, "depth neurons"]) -> UnitScores:
    """Adds up scores of query heads and neurons of every layer, protected ones too, to those of units."""
    layers = slice(units.first, units.first + units.layers)
    of_heads = heads[layers].reshape(units.layers, units.config.num_kv_heads, units.group)
    if not units.in_groups:
        of_heads = jnp.sum(of_heads, axis=2)[:, None, :]
    return UnitScores(of_heads, jnp.sum(neurons[layers].reshape(units.layers, units.blocks, units.block), axis=2))


def activation_scores(
    config: ModelConfig, weights: Weights, norms: Sequence[dict[str, Float[Array, "in"]]]
) -> tuple[Float[Array, "depth heads"], Float[Array, "depth neurons"]]:
    """Returns |w| · ‖x‖ of every query head and every neuron, summed over its rows of the output projection.

    Args:
        config: The full model's.
        weights: Its weights by path.
        norms: Of every layer, the root of the mean square of each input of its output projections, by their keys.
    """
    found = []
    for path, key in OUTPUTS.items():
        sizes = jnp.stack([layer[key] for layer in norms])
        found.append(jnp.sum(jnp.abs(weights[path].astype(jnp.float32)), axis=2) * sizes)
    heads = jnp.sum(found[0].reshape(len(norms), config.num_heads, config.head_dim), axis=2)
    return heads, found[1]


def rank_by_activations(units: Units, weights: Weights, tokens: Int32[np.ndarray, "rows length"]) -> Order:
    """Returns the units by what comes into the output projections when the model reads text, in one pass.

    Args:
        units: The full model's.
        weights: Its weights by path.
        tokens: int32 rows.
    """
    norms = []
    with exact_products():
        walk = Walk(units.config, weights, tokens)
        for stack, place in walk.layers:
            squares = walk.squares(stack, place, walk.layer(stack, place))
            if stack.name == "layers":
                norms.append({key: jnp.sqrt(squares[key]) for key in OUTPUTS.values()})
        return by_unit(units, *activation_scores(units.config, weights, norms)).order()


def gradient_scores(
    units: Units,
    model: Functional,
    weights: Weights,
    batches: Sequence[tuple[Int32[np.ndarray, "rows length"], Bool[np.ndarray, "rows length"]]],
) -> UnitScores:
    """Returns the sum, over batches, of the square of the loss's gradient in a gate on each unit.

    Args:
        units: The full model's.
        model: Its structure.
        weights: Its weights by path.
        batches: int32 rows, and which of their tokens the loss counts; all of one size.
    """
    config = units.config
    widths = {path: weights[path].shape[:2] for path in OUTPUTS}

    def loss(gates: dict[str, Array], weights: Weights, tokens: Array, targets: Array) -> Array:
        gated = {path: weights[path] * gate[:, :, None].astype(weights[path].dtype) for path, gate in gates.items()}
        total, count = text_nll(model, {**weights, **gated}, tokens, targets)
        return total / jnp.maximum(count, 1.0)

    @jax.jit
    def squares(weights: Weights, tokens: Array, targets: Array) -> UnitScores:
        gates = {path: jnp.ones(shape, jnp.float32) for path, shape in widths.items()}
        slopes = jax.grad(loss)(gates, weights, tokens, targets)
        heads = jnp.sum(slopes[ATTENTION_OUT].reshape(-1, config.num_heads, config.head_dim), axis=2)
        return UnitScores(*map(jnp.square, by_unit(units, heads, slopes[MLP_OUT])))

    total = None
    for tokens, targets in batches:
        found = squares(weights, tokens, targets)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    assert total is not None
    return total
