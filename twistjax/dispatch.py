"""Central model to workers and back: gather what each worker holds, and average what holders made of it.

A worker's model is the backbone's own transformer with a smaller config and dense weights. Embeddings, norms and the
biases of outputs are everybody's. Weights are dicts by path, as `backbone.names.weights` lists them.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from backbone.config import ModelConfig
from twistjax.units import Kept, Units

Weights = Mapping[str, Array]
Correction = Literal["inverse", "full", "none"]
ATTENTION_OUT, MLP_OUT = "layers.self_attn.o_proj.kernel", "layers.mlp.down_proj.kernel"


class Side(NamedTuple):
    """One side of a projection.

    Attributes:
        axis: Axis of the weight, behind the layers'.
        holds: What lies along it: ``heads``, ``kv_heads``, ``neurons``, or ``fused`` (q | k | v).
    """

    axis: int
    holds: str


def sides(config: ModelConfig) -> dict[str, Side]:
    """Returns which weights have units along an axis, and which axis; all others are shared."""
    found = {ATTENTION_OUT: Side(0, "heads"), MLP_OUT: Side(0, "neurons")}
    outs = {"mlp.up_proj": "neurons"}
    if config.gated_mlp:
        outs["mlp.gate_proj"] = "neurons"
    if config.fused_qkv:
        outs["self_attn.c_attn"] = "fused"
    else:
        outs |= {"self_attn.q_proj": "heads", "self_attn.k_proj": "kv_heads", "self_attn.v_proj": "kv_heads"}
    biased = {"mlp": config.mlp_bias, "self_attn": config.qkv_bias}
    for key, holds in outs.items():
        found[f"layers.{key}.kernel"] = Side(1, holds)
        if biased[key.partition(".")[0]]:
            found[f"layers.{key}.bias"] = Side(0, holds)
    return found


def gather(central: Weights, kept: Kept, config: ModelConfig) -> dict[str, Array]:
    """Returns the weights of a subnetwork.

    Args:
        central: All weights of the full model by path; those of blocks have a leading layer axis.
        kept: What the subnetwork keeps.
        config: The full model's.
    """
    where = sides(config)
    small = dict(central)
    for path, side in where.items():
        small[path] = jnp.take_along_axis(central[path], _index(kept, side, central[path].ndim, config), side.axis + 1)
    return small


def holder_mean(
    central: Weights, trained: Sequence[Weights], kept: Sequence[Kept], config: ModelConfig
) -> dict[str, Array]:
    """Returns the central model after a round: every weight is the mean over the workers that hold it.

    Sums are float32, in the order of the workers; what nobody holds stays as it was.

    Args:
        central: The weights that were gathered from.
        trained: Each worker's weights.
        kept: What each worker holds.
        config: The full model's.
    """
    where = sides(config)
    workers = len(trained)
    after = {}
    for path, before in central.items():
        if path not in where:
            total = sum((one[path].astype(jnp.float32) for one in trained[1:]), trained[0][path].astype(jnp.float32))
            after[path] = (total / workers).astype(before.dtype)
            continue
        side = where[path]
        total, holders = jnp.zeros(before.shape, jnp.float32), jnp.zeros(before.shape, jnp.float32)
        for one, held in zip(trained, kept, strict=True):
            index = _index(held, side, before.ndim, config)
            at = _everywhere(index, one[path].shape, side.axis + 1)
            total = total.at[at].add(one[path].astype(jnp.float32), unique_indices=True)
            holders = holders.at[at].add(1.0, unique_indices=True)
        mean = total / jnp.maximum(holders, 1.0)
        after[path] = jnp.where(holders > 0, mean, before.astype(jnp.float32)).astype(before.dtype)
    return after


def corrected(weights: Weights, units: Units, kappa: float, correction: Correction, *, full: bool) -> dict[str, Array]:
    """Returns weights whose branches make up for the units that are not there, folded into the output projections.

    ``inverse`` multiplies the branches of a subnetwork by 1 / (share kept), which keeps their expectation over random
    subnetworks; ``full`` multiplies those of the full model by the share kept (ResIST); biases of outputs, which
    everybody has, are not touched.

    Args:
        weights: Of a subnetwork, or of the full model.
        units: The model's units.
        kappa: The share that subnetworks keep.
        correction: Which.
        full: Whether `weights` are the full model's.
    """
    factors = {"inverse": not full, "full": full, "none": False}
    if not factors[correction]:
        return dict(weights)
    found = dict(weights)
    for path, share in zip((ATTENTION_OUT, MLP_OUT), units.shares(kappa), strict=True):
        factor = share if full else 1 / share
        found[path] = (weights[path].astype(jnp.float32) * factor).astype(weights[path].dtype)
    return found


def _index(kept: Kept, side: Side, ndim: int, config: ModelConfig) -> Int[Array, "layers ..."]:
    """Returns indices along a weight's axis, for every layer, with ones for its other axes."""
    if side.holds == "neurons":
        index = kept.neurons
    elif side.holds == "fused":
        q, kv = config.num_heads, config.num_kv_heads
        parts = [kept.heads, kept.kv_heads + jnp.int32(q), kept.kv_heads + jnp.int32(q + kv)]
        index = _features(jnp.concatenate(parts, axis=1), config.head_dim)
    else:
        index = _features(getattr(kept, side.holds), config.head_dim)
    shape = [1] * ndim
    shape[0], shape[side.axis + 1] = index.shape
    return index.reshape(shape)


def _features(heads: Int[Array, "layers heads"], head_dim: int) -> Int[Array, "layers features"]:
    members = heads[:, :, None] * jnp.int32(head_dim) + jnp.arange(head_dim, dtype=jnp.int32)[None, None, :]
    return members.reshape(heads.shape[0], -1)


def _everywhere(index: Int[Array, "..."], shape: tuple[int, ...], axis: int) -> tuple[Int[Array, "..."], ...]:
    """Returns the index of every element of a gathered weight in the one it came from."""
    own = jnp.meshgrid(*[jnp.arange(size, dtype=jnp.int32) for size in shape], indexing="ij", sparse=True)
    return tuple(index if number == axis else one for number, one in enumerate(own))
