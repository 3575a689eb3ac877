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
from altojax.device.multi_lora import Routing, adapt
from altojax.device.objective import CROSS_ENTROPY, Objective, Outputs, Terms
from altojax.device.optimizer import Hyper, adamw, gathered
from jaxlm.devices.mesh import MeshLayout
from jaxlm.families.names import Projection
from jaxlm.models.transformer import Transformer


@dataclass(frozen=True)
class StaticPlan:
    """The static settings of a run, whichever trials are in its slots.

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
        objective: What trials minimize.
        averages: Windows of the running averages that each slot carries of its adapter.

    Raises:
        ValueError: Samples have a number of rows that is no power of two, or their rows hold several texts.
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
    objective: Objective = CROSS_ENTROPY
    averages: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks rows against the objective."""
        if self.objective.group.bit_count() != 1:
            raise ValueError(
                f"samples of {type(self.objective).__name__} have {self.objective.group} rows, expected a power of two"
            )
        if self.objective.group > 1 and (self.packed or self.shares):
            raise ValueError(
                f"rows with several texts, expected one a row: samples of {type(self.objective).__name__} have "
                f"{self.objective.group} rows"
            )


class SlotState(NamedTuple):
    """Everything that trains; every leaf but the steps is float32 [layer, slot, in, out].

    Attributes:
        adapters: A and B of every adapted projection.
        mu: First moments.
        nu: Second moments.
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
    routing = Routing(batch.row_slots, hyper.scale, hyper.dropout if drops else None, batch.row_keys if drops else None)
    hidden = model(batch.tokens, batch.positions, batch.segments, routing)
    return objective(Outputs(model, hidden, batch, hyper, head_chunk, collectives, objective.group))


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

    Slots touch nothing of one another: each row meets one adapter, each target adds to one slot's loss, and the
    gradient of the sum of losses is, for every adapter, the gradient of its own.

    Args, beside those of `slot_terms`:
        state: Everything that trains.
        averages: Windows of the running averages in it.

    Returns:
        The new state (slots that did not step keep theirs bit for bit) and the report.
    """

    def total(adapters: nnx.State) -> tuple[Float[Array, ""], Terms]:
        terms = slot_terms(
            graph,
            weights,
            adapters,
            hyper,
            batch,
            objective=objective,
            head_chunk=head_chunk,
            drops=drops,
            collectives=collectives,
        )
        return jnp.sum(terms.loss), terms._replace(rows=None)

    gradients, terms = jax.grad(total, has_aux=True)(state.adapters)
    gradients, terms = collectives.gradients(gradients), jax.tree.map(collectives.losses, terms)
    if state.gathered is not None:
        gradients = gathered(state.gathered, gradients, batch.begin, hyper)
    new = adamw(
        state.adapters,
        gradients,
        state.mu,
        state.nu,
        state.steps,
        hyper,
        batch.apply,
        collectives.squares,
        state.averages,
        averages,
    )
    sums = None if state.gathered is None else gradients
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
