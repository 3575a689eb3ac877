"""The jitted training and evaluation steps.

Pure functions of state pytrees, the same program whoever sits in the slots.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from altojax.device.collectives import Collectives
from altojax.device.multi_lora import Routing, adapt
from altojax.device.optimizer import Hyper, adamw
from jaxlm.devices.mesh import MeshLayout
from jaxlm.families.names import Projection
from jaxlm.models.head import target_nll
from jaxlm.models.transformer import Transformer


@dataclass(frozen=True)
class StaticPlan:
    """What is static for a whole run: the same for every trial that comes and goes.

    Attributes:
        slots: Trials that train at once; a multiple of the groups of a mesh.
        rank: The largest rank of any trial.
        projections: Projections that any trial adapts.
        lengths: Length buckets, in tokens.
        accumulates: Whether any trial accumulates gradients.
        drops: Whether any trial has dropout.
        packed: Whether rows hold several texts.
        shares: Whether texts of a slot share rows in training, where `packed` and `drops` are false.
        kernels: Implementation of the adapter product; None takes the fastest that fits.
    """

    slots: int
    rank: int
    projections: Mapping[str, Projection]
    lengths: tuple[int, ...]
    accumulates: bool
    drops: bool
    packed: bool
    shares: bool = False
    kernels: str | None = None


class SlotState(NamedTuple):
    """Everything that trains; every leaf of the first four is float32 [layer, slot, in, out].

    Attributes:
        adapters: A and B of every adapted projection.
        mu: First moments.
        nu: Second moments.
        gathered: Gradients summed since the last update, or None where no trial accumulates.
        steps: int32 [slots], optimizer steps taken.
    """

    adapters: Any
    mu: Any
    nu: Any
    gathered: Any
    steps: Any


class Batch(NamedTuple):
    """The rows of all slots, laid out slot by slot; see `altojax.device.batch`.

    Attributes:
        tokens: int32 [rows, length].
        row_slots: int32 [rows].
        row_keys: uint32 [rows], dropout keys.
        positions: int32 [rows, length] and
        segments: int32 [rows, length] for packed rows, else None.
        target_at: int32 [targets], flat index (row · length + t) of the hidden state that predicts the target.
        target_ids: int32 [targets].
        target_slots: int32 [targets].
        target_weight: float32 [targets], 1 / (targets in the slot's whole effective batch); 0 for padding.
        begin: bool [slots], slots whose accumulation starts with this batch.
        apply: bool [slots], slots that take an optimizer step after this batch.
    """

    tokens: Int[Array, "rows length"]
    row_slots: Int[Array, " rows"]
    row_keys: UInt32[Array, " rows"]
    positions: Int[Array, "rows length"] | None
    segments: Int[Array, "rows length"] | None
    target_at: Int[Array, " targets"]
    target_ids: Int[Array, " targets"]
    target_slots: Int[Array, " targets"]
    target_weight: Float[Array, " targets"]
    begin: Bool[Array, " slots"]
    apply: Bool[Array, " slots"]


class StepReport(NamedTuple):
    """What a training step says of each slot: float32 loss and gradient norm, and whether it took its update."""

    loss: Float[Array, " slots"]
    grad_norm: Float[Array, " slots"]
    stepped: Bool[Array, " slots"]


class Frozen(NamedTuple):
    """The base model, split: static structure and arrays that no step writes."""

    graph: Any
    weights: Any


def split_model(model: nnx.Module, lora_type: type[nnx.Variable]) -> tuple[Frozen, Any]:
    """Splits an adapted model into its frozen part and the adapters' state."""
    graph, state = nnx.split(model)
    adapters, weights = nnx.split_state(state, lora_type, nnx.filterlib.Everything())
    return Frozen(graph, weights), adapters


def local_structure(
    model: Transformer, layout: MeshLayout, projections: dict[str, Projection], sizes: Mapping[str, Any]
) -> Any:
    """Returns the static structure of the adapted model that one device computes."""

    def build() -> Transformer:
        kinds: dict[str, Any] = {"dtype": model.dtype, "remat": model.remat, "scan_layers": model.scan_layers}
        local = Transformer(layout.local_config, mesh_axes=layout.mesh_axes, rngs=nnx.Rngs(0), **kinds)
        adapt(local, projections, slots=1, **sizes)
        return local

    return nnx.split(nnx.eval_shape(build))[0]


def slot_losses(
    graph: Any,
    weights: Any,
    adapters: Any,
    hyper: Hyper,
    batch: Batch,
    *,
    head_chunk: int,
    train: bool,
    drops: bool,
    collectives: Collectives,
) -> Float[Array, " slots"]:
    """Returns each slot's weighted sum of the target losses that this device computes, float32.

    Args:
        graph: Static structure of the adapted model.
        weights: Its frozen arrays.
        adapters: Its adapters.
        hyper: Per-slot hyper-parameters, of which scale and dropout matter here.
        batch: Rows of all slots.
        head_chunk: Targets whose logits exist at once.
        train: Whether dropout is on.
        drops: Whether any trial of the run has dropout at all; when not, no mask is made.
        collectives: What devices do together.
    """
    model = nnx.merge(graph, adapters, weights)
    slots = hyper.scale.shape[0]
    dropping = train and drops
    routing = Routing(
        batch.row_slots, hyper.scale, hyper.dropout if dropping else None, batch.row_keys if dropping else None
    )
    hidden = model(batch.tokens, batch.positions, batch.segments, routing)
    hidden, (at, ids, owners, weight) = collectives.targets(
        hidden, (batch.target_at, batch.target_ids, batch.target_slots, batch.target_weight)
    )
    # Padding points at some row, maybe a neighbour's: neither its state nor its gradient may count, not even times 0.
    flat = hidden.reshape(-1, hidden.shape[-1])[at]
    flat = jnp.where((weight > 0)[:, None], flat, jnp.zeros_like(flat))
    nll = target_nll(flat, model.head_kernel(), ids, chunk=head_chunk)
    # Not a scatter, which a GPU adds up in any order: losses would change in their last bits from run to run.
    owned = jax.nn.one_hot(owners, slots, dtype=bool)
    return jnp.sum(jnp.where(owned, (nll * weight)[:, None], 0.0), axis=0)


def train_step(
    graph: Any,
    weights: Any,
    state: SlotState,
    hyper: Hyper,
    batch: Batch,
    *,
    head_chunk: int,
    drops: bool,
    collectives: Collectives,
) -> tuple[SlotState, StepReport]:
    """One micro-batch of every slot, and an AdamW step of the slots whose effective batch is whole.

    Slots touch nothing of one another: each row meets one adapter, each target adds to one slot's loss, and the
    gradient of the sum of losses is, for every adapter, the gradient of its own.

    Returns:
        The new state (slots that did not step keep theirs bit for bit) and the report.
    """

    def total(adapters: Any) -> tuple[Array, Array]:
        losses = slot_losses(
            graph,
            weights,
            adapters,
            hyper,
            batch,
            head_chunk=head_chunk,
            train=True,
            drops=drops,
            collectives=collectives,
        )
        return jnp.sum(losses), losses

    gradients, losses = jax.grad(total, has_aux=True)(state.adapters)
    gradients, losses = collectives.gradients(gradients), collectives.losses(losses)
    gathered = state.gathered
    if gathered is not None:
        keep = ~batch.begin[None, :, None, None]
        gradients = jax.tree.map(lambda sum_, g: jnp.where(keep, sum_, jnp.zeros_like(sum_)) + g, gathered, gradients)
        gathered = gradients
    adapters, mu, nu, steps, norm, stepped = adamw(
        state.adapters, gradients, state.mu, state.nu, state.steps, hyper, batch.apply, collectives.squares
    )
    return SlotState(adapters, mu, nu, gathered, steps), StepReport(
        *map(collectives.all_slots, (losses, norm, stepped))
    )


def eval_step(
    graph: Any, weights: Any, adapters: Any, hyper: Hyper, batch: Batch, *, head_chunk: int, collectives: Collectives
) -> Float[Array, " slots"]:
    """Returns each slot's sum of target losses (weights are 1), float32, without dropout."""
    losses = slot_losses(
        graph, weights, adapters, hyper, batch, head_chunk=head_chunk, train=False, drops=False, collectives=collectives
    )
    return collectives.all_slots(collectives.losses(losses))
