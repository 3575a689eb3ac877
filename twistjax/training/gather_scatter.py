"""Central model to workers and back: gather what each worker holds, and average what holders made of it.

A worker's model is the same transformer with a smaller config and dense weights. Embeddings, norms, the
biases of outputs and protected layers are everybody's. Weights are dicts by path, as `jaxlm.families.names.weights`
lists them; the central model's layers are one stack, a worker's are up to three, as its config says.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.families.config import ModelConfig
from jaxlm.families.names import projections
from jaxlm.families.projections import Features, width_of
from twistjax.training.units import Kept, Units

Weights = Mapping[str, Array]
Correction = Literal["inverse", "full", "none"]
LAYERS, FIRST, LAST = "layers.", "first_layers.", "last_layers."
ATTENTION_OUT, MLP_OUT = "layers.self_attn.o_proj.kernel", "layers.mlp.down_proj.kernel"


class Side(NamedTuple):
    """The side of a projection that has units along it.

    Attributes:
        axis: Axis of the weight, behind the layers'.
        holds: What lies along it, part by part.
    """

    axis: int
    holds: tuple[Features, ...]


def sides(config: ModelConfig) -> dict[str, Side]:
    """Returns which weights have units along an axis, and which axis; all others are shared."""
    found = {}
    for key, one in projections(config).items():
        if one.inputs != "hidden":
            found[f"layers.{key}.kernel"] = Side(0, (one.inputs,))
            continue
        found[f"layers.{key}.kernel"] = Side(1, one.outputs)
        if one.bias:
            found[f"layers.{key}.bias"] = Side(0, one.outputs)
    return found


def gather(central: Weights, kept: Kept, units: Units) -> dict[str, Array]:
    """Returns the weights of a subnetwork.

    Args:
        central: All weights of the full model by path; those of blocks have a leading layer axis.
        kept: What the subnetwork keeps.
        units: The full model's.
    """
    where, end = sides(units.config), units.first + units.layers
    small = {}
    for path, value in central.items():
        if not path.startswith(LAYERS):
            small[path] = value
            continue
        middle = value[units.first : end]
        if path in where:
            side = where[path]
            index = _along(side, _members(kept, side, units.config), value.ndim)
            middle = jnp.take_along_axis(middle, index, side.axis + 1)
        small[path] = middle
        if units.first:
            small[_in(FIRST, path)] = value[: units.first]
        if units.last:
            small[_in(LAST, path)] = value[end:]
    return small


def add(total: Weights, trained: Weights, kept: Kept, units: Units) -> dict[str, Array]:
    """Returns sums of the full model's shapes with a worker's weights added where they came from.

    Args:
        total: float32 sums by path.
        trained: The worker's weights.
        kept: What it holds.
        units: The full model's.
    """
    where = sides(units.config)
    after = {}
    for path, value in total.items():
        own = trained[path].astype(jnp.float32)
        if path in where:
            side = where[path]
            # A gather by the inverse index is many times faster than a scatter.
            index = _along(side, _found_at(kept, side, units.config), value.ndim)
            own = jnp.take_along_axis(own, index, side.axis + 1, mode="fill", fill_value=0.0)
        if path.startswith(LAYERS):
            first, last = (
                [trained[_in(stack, path)].astype(jnp.float32)] if count else []
                for stack, count in ((FIRST, units.first), (LAST, units.last))
            )
            own = jnp.concatenate([*first, own, *last])
        after[path] = value + own
    return after


def holders(kept: Kept, units: Units) -> dict[str, Float[Array, "..."]]:
    """Returns how many of several workers hold each weight that has units.

    Args:
        kept: What the workers hold, stacked.
        units: The full model's.

    Returns:
        float32 by path, with ones for axes without units, so that it broadcasts against the full weight.
    """
    workers = kept.heads.shape[0]
    found = {}
    for path, side in sides(units.config).items():

        def held(one: Kept, side: Side = side) -> Array:
            size = _members(one, side, units.config).shape[1]
            return (_found_at(one, side, units.config) < size).astype(jnp.float32)

        middle = jnp.sum(jax.vmap(held)(kept), axis=0)
        count = jnp.pad(middle, ((units.first, units.last), (0, 0)), constant_values=float(workers))
        found[path] = _along(side, count, 3 if path.endswith("kernel") else 2)
    return found


def holder_mean(central: Weights, total: Weights, held: Weights, workers: int) -> dict[str, Array]:
    """Returns the central model after a round: every weight is the mean over the workers that hold it.

    Args:
        central: The weights that were gathered from; what nobody holds stays as it was.
        total: Sums over the workers, by `add`.
        held: How many hold each weight that has units, by `holders`.
        workers: How many there are; all of them hold what is shared.
    """
    after = {}
    for path, before in central.items():
        if path in held:
            mean = total[path] / jnp.maximum(held[path], 1.0)
            mean = jnp.where(held[path] > 0, mean, before.astype(jnp.float32))
        else:
            mean = total[path] / workers
        after[path] = mean.astype(before.dtype)
    return after


def corrected(weights: Weights, units: Units, kappa: float, correction: Correction, *, full: bool) -> dict[str, Array]:
    """Returns weights whose branches make up for the units that are not there, folded into the output projections.

    ``inverse`` multiplies the branches of a subnetwork by 1 / (share kept), which keeps their expectation over random
    subnetworks; ``full`` multiplies those of the full model by the share kept (ResIST); biases of outputs and protected
    layers, which everybody has, are not touched.

    Args:
        weights: Of a subnetwork, or of the full model.
        units: The model's units.
        kappa: The share that subnetworks keep.
        correction: Which.
        full: Whether `weights` are the full model's.
    """
    factors = {"inverse": not full, "full": full, "none": False}
    found = dict(weights)
    if not factors[correction]:
        return found
    for path, share in zip((ATTENTION_OUT, MLP_OUT), units.shares(kappa), strict=True):
        value = weights[path].astype(jnp.float32)
        if full:
            middle = jnp.arange(units.depth, dtype=jnp.int32)
            middle = (middle >= units.first) & (middle < units.first + units.layers)
            value = value * jnp.where(middle, jnp.float32(share), jnp.float32(1))[:, None, None]
        else:
            value = value * (1 / share)
        found[path] = value.astype(weights[path].dtype)
    return found


def _in(stack: str, path: str) -> str:
    return stack + path.removeprefix(LAYERS)


def _members(kept: Kept, side: Side, config: ModelConfig) -> Int[Array, "layers members"]:
    """Returns which places along a weight's axis are kept, for every layer."""
    parts, first = [], 0
    for features in side.holds:
        parts.append(jnp.int32(first) + _places(kept, features, config))
        first += width_of(features, config)
    return jnp.concatenate(parts, axis=1)


def _places(kept: Kept, features: Features, config: ModelConfig) -> Int[Array, "layers members"]:
    """Returns which features of a kind are kept, for every layer."""
    if features == "neurons":
        return kept.neurons
    heads = kept.heads if features == "heads" else kept.kv_heads
    within = jnp.arange(config.head_dim, dtype=jnp.int32)[None, None]
    return (heads[:, :, None] * jnp.int32(config.head_dim) + within).reshape(heads.shape[0], -1)


def _found_at(kept: Kept, side: Side, config: ModelConfig) -> Int[Array, "layers width"]:
    """Returns where in the gathered weight each place of the full one is; behind its end for what is not kept."""
    members = _members(kept, side, config)
    layers, size = members.shape
    at = jnp.full((layers, sum(width_of(one, config) for one in side.holds)), size, jnp.int32)
    row = jnp.arange(layers, dtype=jnp.int32)[:, None]
    return at.at[row, members].set(jnp.arange(size, dtype=jnp.int32)[None, :], unique_indices=True)


def _along(side: Side, values: Array, ndim: int) -> Array:
    """Returns [layers, n] with ones for the other axes of a weight."""
    shape = [1] * ndim
    shape[0], shape[side.axis + 1] = values.shape
    return values.reshape(shape)
