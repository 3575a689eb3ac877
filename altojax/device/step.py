"""The jitted training and evaluation steps.

Pure functions of state pytrees: the same program for any trials in the slots.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from altojax.device.batch import Batch
from altojax.device.collectives import Collectives
from altojax.device.multi_lora.adapt import adapt
from altojax.device.multi_lora.routing import Routing
from altojax.device.objectives.cross_entropy import CROSS_ENTROPY
from altojax.device.objectives.objective import Objective, Outputs, Terms
from altojax.device.optimizer import Gradients, Hyper, adamw, gathered
from jaxlm.data.batching.row_layout import RowGeometry
from jaxlm.devices.mesh import MeshLayout
from jaxlm.families.names import Projection
from jaxlm.models.mixers.row_texts import RowTexts
from jaxlm.models.transformer import Transformer
from pallas_kernels.moments import Kind


@dataclass(frozen=True)
class StaticPlan:
    """The static settings of a run, whichever trials are in its slots.

    Attributes:
        slots: Trials that train at once; a multiple of the groups of a mesh.
        rank: The largest rank of any trial.
        projections: Projections that any trial adapts.
        rows: The rows in which batches are laid out.
        accumulates: Whether any trial accumulates gradients.
        drops: Whether any trial has dropout.
        kernels: Implementation of the adapter product; None takes the fastest that fits.
        objective: What trials minimize.
        averages: Windows of the running averages that each slot carries of its adapter.
        optimizer_state: How AdamW's moments are kept.

    Raises:
        ValueError: Samples have a number of rows that is no power of two.
    """

    slots: int
    rank: int
    projections: Mapping[str, Projection]
    rows: RowGeometry
    accumulates: bool
    drops: bool
    kernels: str | None = None
    objective: Objective = CROSS_ENTROPY
    averages: tuple[float, ...] = ()
    optimizer_state: Kind = "float32"

    def __post_init__(self) -> None:
        """Checks the objective."""
        if self.objective.group.bit_count() != 1:
            raise ValueError(
                f"samples of {type(self.objective).__name__} have {self.objective.group} rows, expected a power of two"
            )


class SlotState(NamedTuple):
    """Everything that trains; every leaf but the steps and moments is float32 [layer, slot, in, out].

    Attributes:
        adapters: A and B of every adapted projection.
        mu: First moments, float32 or as `pallas_kernels.moments` keeps them.
        nu: Second moments, likewise.
        gathered: Gradients summed since the last update, or None where no trial accumulates.
        steps: int32 [slots], optimizer steps taken.
        averages: Running averages of the adapters, one a window.
    """

    adapters: nnx.State
    mu: nnx.State
    nu: nnx.State
    gathered: nnx.State | None
    steps: Int[Array, " slots"]
    averages: tuple[nnx.State, ...] = ()


class StepReport(NamedTuple):
    """The result of a training step, slot by slot.

    Attributes:
        loss: float32, its part of the loss of the effective batch.
        grad_norm: float32, of the gradient accumulated so far, before clipping.
        stepped: Whether it took its update.
        metrics: float32 each, the objective's, likewise parts.
    """

    loss: Float[Array, " slots"]
    grad_norm: Float[Array, " slots"]
    stepped: Bool[Array, " slots"]
    metrics: dict[str, Float[Array, " slots"]]


class Frozen(NamedTuple):
    """The base model, split: static structure and arrays that no step writes."""

    graph: nnx.GraphDef[Transformer]
    weights: nnx.State


def split_model(model: Transformer, lora_type: type[nnx.Variable]) -> tuple[Frozen, nnx.State]:
    """Splits an adapted model into its frozen part and the adapters' state."""
    graph, state = nnx.split(model)
    adapters, weights = nnx.split_state(state, lora_type, nnx.filterlib.Everything())
    return Frozen(graph, weights), adapters


def local_structure(
    model: Transformer, layout: MeshLayout, projections: dict[str, Projection], sizes: Mapping[str, Any]
) -> nnx.GraphDef[Transformer]:
    """Returns the static structure of the adapted model that one device computes."""

    def build() -> Transformer:
        kinds: dict[str, Any] = {"dtype": model.dtype, "remat": model.remat, "scan_layers": model.scan_layers}
        local = Transformer(layout.local_config, mesh_axes=layout.mesh_axes, rngs=nnx.Rngs(0), **kinds)
        adapt(local, projections, slots=1, **sizes)
        return local

    return nnx.split(nnx.eval_shape(build))[0]


def slot_terms(
    graph: nnx.GraphDef[Transformer],
    weights: nnx.State,
    adapters: nnx.State,
    hyper: Hyper[Array],
    batch: Batch,
    *,
    objective: Objective,
    head_chunk: int,
    drops: bool,
    collectives: Collectives,
) -> Terms:
    """Returns the objective's terms of the part of each slot's samples that this device computes.

    Args:
        graph: Static structure of the adapted model.
        weights: Its frozen arrays.
        adapters: Its adapters.
        hyper: Per-slot hyper-parameters, of which scale, dropout and the objective's own matter here.
        batch: Rows of all slots.
        objective: The loss.
        head_chunk: Targets whose logits exist at once.
        drops: Whether any trial drops anything now; when not, no mask is made.
        collectives: Of the mesh.
    """
    model = nnx.merge(graph, adapters, weights)
    seeds = batch.token_seeds if drops else None
    rate = hyper.dropout if drops else None
    routing = Routing(batch.tile_slots, hyper.scale, rate, seeds, batch.live_tiles())
    texts = RowTexts(batch.begins, batch.tile_slots.reshape(batch.tokens.shape[0], -1), batch.sizes)
    hidden = model(batch.tokens, texts, routing)
    return objective(Outputs(model, hidden, batch, hyper, head_chunk, collectives, objective.group))


SLOTS_OF = tuple(name for name in Batch._fields if name.endswith("_slots"))
"""The fields of a batch that say whose something is; whatever it is, slots with targets have one at least."""


class Places(NamedTuple):
    """The slots whose targets are in a batch, close together: what a step computes of others is nothing but zeros.

    Attributes:
        slots: int32 [places], the slot at each place; slots without targets fill those that are left.
        of: int32 [slots], the place of each; no place, but a higher number, for slots that are left out.
    """

    slots: Int[Array, " places"]
    of: Int[Array, " slots"]

    def moved(self, batch: Batch) -> Batch:
        """Returns the batch with places for slots."""
        last = self.slots.shape[0] - 1
        moved: dict[str, Any] = {
            name: jnp.minimum(self.of[slots], last) for name, slots in batch._asdict().items() if name in SLOTS_OF
        }
        return batch._replace(**moved)

    def of_all_slots(self, values: Float[Array, " places"]) -> Float[Array, " slots"]:
        """Returns the values of all slots; those that are left out have 0."""
        last = self.slots.shape[0] - 1
        return jnp.where(self.of <= last, values[jnp.minimum(self.of, last)], 0)


def slots_with_targets(batch: Batch) -> Places | None:
    """Returns places for the slots that a batch may have targets of; None where these are all."""
    slots = batch.apply.shape[0]
    most = min(getattr(batch, name).shape[0] for name in SLOTS_OF)
    if most >= slots:
        return None
    owned = jax.nn.one_hot(batch.target_slots, slots, dtype=bool) & (batch.target_weight > 0)[:, None]
    order = jnp.argsort(~jnp.any(owned, axis=0), stable=True).astype(jnp.int32)
    return Places(order[:most], jnp.argsort(order).astype(jnp.int32))


def train_step(
    graph: nnx.GraphDef[Transformer],
    weights: nnx.State,
    state: SlotState,
    hyper: Hyper[Array],
    batch: Batch,
    *,
    objective: Objective,
    head_chunk: int,
    drops: bool,
    averages: tuple[float, ...],
    collectives: Collectives,
) -> tuple[SlotState, StepReport]:
    """One micro-batch of every slot, and an AdamW step of the slots whose effective batch is whole.

    Slots touch nothing of one another: each tile meets one adapter, each target adds to one slot's loss, and the
    gradient of the sum of losses is, for every adapter, the gradient of its own.

    Args, beside those of `slot_terms`:
        state: Everything that trains.
        averages: Windows of the running averages in it.

    Returns:
        The new state (slots that did not step keep theirs bit for bit) and the report.
    """
    places = None if collectives.replicated else slots_with_targets(batch)
    adapters, own_hyper, own_batch = state.adapters, hyper, batch
    if places is not None:
        adapters = jax.tree.map(lambda stack: jnp.take(stack, places.slots, axis=1, mode="clip"), adapters)
        own_hyper = jax.tree.map(lambda values: values[places.slots], hyper)
        own_batch = places.moved(batch)

    def total(adapters: nnx.State) -> tuple[Float[Array, ""], Terms]:
        terms = slot_terms(
            graph,
            weights,
            adapters,
            own_hyper,
            own_batch,
            objective=objective,
            head_chunk=head_chunk,
            drops=drops,
            collectives=collectives,
        )
        return jnp.sum(terms.loss), terms._replace(rows=None)

    gradients, terms = jax.grad(total, has_aux=True)(adapters)
    if places is not None:
        terms = jax.tree.map(places.of_all_slots, terms)
    gradients, terms = collectives.gradients(gradients), jax.tree.map(collectives.losses, terms)
    found = Gradients(gradients, None if places is None else places.of)
    if state.gathered is not None:
        found = Gradients(gathered(state.gathered, found, batch.begin, hyper))
    new = adamw(
        state.adapters,
        found,
        state.mu,
        state.nu,
        state.steps,
        hyper,
        batch.apply,
        collectives.squares,
        state.averages,
        averages,
    )
    sums = None if state.gathered is None else found.stacks
    report = StepReport(terms.loss, new.norm, new.stepped, terms.metrics)
    state = SlotState(new.weights, new.mu, new.nu, sums, new.steps, new.averages)
    return state, jax.tree.map(collectives.all_slots, report)


def eval_step(
    graph: nnx.GraphDef[Transformer],
    weights: nnx.State,
    adapters: nnx.State,
    hyper: Hyper[Array],
    batch: Batch,
    *,
    objective: Objective,
    head_chunk: int,
    collectives: Collectives,
) -> Terms:
    """Returns each slot's sums of losses and metrics (weights are 1), and all rows' losses, without dropout."""
    kinds: dict[str, Any] = {"objective": objective, "head_chunk": head_chunk, "collectives": collectives}
    terms = slot_terms(graph, weights, adapters, hyper, batch, drops=False, **kinds)
    sums = jax.tree.map(lambda sums: collectives.all_slots(collectives.losses(sums)), terms._replace(rows=None))
    return sums._replace(rows=None if terms.rows is None else collectives.all_rows(terms.rows))
