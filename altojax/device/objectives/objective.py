"""Objectives: a loss and metrics of hidden states and targets, for each slot by itself.

docs/extend/objective.md shows how to add one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from altojax.device.batch import Batch, Samples, TokenRow
from altojax.device.collectives import Collectives
from altojax.device.optimizer import Hyper
from jaxlm.models.head import target_nll
from jaxlm.models.transformer import Transformer


class Terms(NamedTuple):
    """An objective's loss and metrics of a batch: sums over a slot's samples, weighted, which add up over batches.

    Attributes:
        loss: float32 [slots]; gradients are taken of this.
        metrics: float32 [slots] each, by name.
        rows: float32 [rows], the loss of each row summed over its targets and not weighted; None where an objective
            does not say it. Only evaluations read it.
    """

    loss: Float[Array, " slots"]
    metrics: dict[str, Float[Array, " slots"]]
    rows: Float[Array, " rows"] | None = None


class Targets(NamedTuple):
    """The targets whose losses a device computes; all arrays are [targets].

    Attributes:
        nll: float32, negative log likelihood.
        rows: int32, the token row that it is of.
        slots: int32, whose it is.
        weight: float32, in its slot's mean; 0 for padding.
    """

    nll: Float[Array, " targets"]
    rows: Int[Array, " targets"]
    slots: Int[Array, " targets"]
    weight: Float[Array, " targets"]


@dataclass(frozen=True)
class Outputs:
    """The input of an objective on one device.

    Attributes:
        model: The adapted model, for its head.
        hidden: [rows, length, width], normed, before the head.
        batch: Token rows, targets and the samples' own numbers.
        hyper: Per-slot hyper-parameters, the objective's own among them.
        head_chunk: Targets whose logits exist at once.
        collectives: Of the mesh.
        group: Rows of a sample.
    """

    model: Transformer
    hidden: Float[Array, "rows length width"]
    batch: Batch
    hyper: Hyper[Array]
    head_chunk: int
    collectives: Collectives
    group: int

    def targets(self) -> Targets:
        """Computes the losses of this device's targets."""
        batch = self.batch
        own = (batch.target_at, batch.target_ids, batch.target_rows, batch.target_slots, batch.target_weight)
        hidden, (at, ids, rows, slots, weight) = self.collectives.targets(self.hidden, own)
        flat, number = hidden.reshape(-1, hidden.shape[-1]), jnp.arange(at.shape[0], dtype=jnp.int32)
        # Padding points at some token, maybe a neighbour's: neither its state nor its gradient may count, not even
        # times 0. So it is outside of all, and its gradient is written nowhere; other targets are of one token each.
        at = jnp.where(weight > 0, at, flat.shape[0] + number)
        flat = flat.at[at].get(mode="fill", fill_value=0, unique_indices=True)
        nll = target_nll(
            flat,
            self.model.head_kernel(),
            ids,
            chunk=self.head_chunk,
            softcap=self.model.config.logit_softcap,
            live=jnp.max(jnp.where(weight > 0, number + 1, 0)),
        )
        return Targets(nll, rows, slots, weight)

    def over_targets(self, targets: Targets, values: Float[Array, " targets"]) -> Float[Array, " slots"]:
        """Returns the weighted sum of each slot's targets."""
        return self._over(self._owned(targets.slots), values * targets.weight)

    def over_rows(self, targets: Targets, values: Float[Array, " targets"]) -> Float[Array, "samples group"]:
        """Returns the sum of each row's targets, not weighted; the same on all devices that have the row."""
        rows = self.batch.row_slots.shape[0]
        owned = jax.nn.one_hot(targets.rows, rows, dtype=bool) & (targets.weight > 0)[:, None]
        return self._samples(self.collectives.same_rows(self._over(owned, values)))

    def row_values(self, name: str) -> Float[Array, "samples group"]:
        """Returns a number of each row, by its name in `Samples.row_values`."""
        return self._samples(self.batch.row_values[name])

    def trial_values(self, name: str) -> Float[Array, " samples"]:
        """Returns a number of the trial that each sample belongs to."""
        return self.of_slots(self.hyper.objective[name])

    def of_slots(self, values: Float[Array, " slots"]) -> Float[Array, " samples"]:
        """Returns for each sample the number of its slot."""
        return values[self._samples(self.batch.row_slots)[:, 0]]

    def over_samples(
        self, values: Float[Array, " samples"], weight: Float[Array, " samples"]
    ) -> Float[Array, " slots"]:
        """Returns the weighted sum of each slot's samples.

        Args:
            values: Computed from `over_rows`.
            weight: Of each; 0 for padding.
        """
        owned = self._owned(self._samples(self.batch.row_slots)[:, 0]) & (weight > 0)[:, None]
        return self._over(owned, values * weight) / self.collectives.copies

    def means(self, values: Float[Array, " samples"], present: Float[Array, " samples"]) -> Float[Array, " slots"]:
        """Returns the mean over each slot's samples on all devices that have some; 0 where it has none.

        Args:
            values: Computed from `over_rows`.
            present: Positive of samples, 0 of padding.
        """
        flags = (present > 0).astype(jnp.float32)
        sums, counts = (self.collectives.losses(self.over_samples(one, flags)) for one in (values, flags))
        return sums / jnp.maximum(counts, 1.0)

    def _samples(self, rows: Shaped[Array, " rows"]) -> Shaped[Array, "samples group"]:
        # A shape may have room for a row more than whole samples, which is padding.
        whole = rows.shape[0] // self.group * self.group
        return rows[:whole].reshape(-1, self.group)

    def _owned(self, slots: Int[Array, " items"]) -> Bool[Array, "items slots"]:
        return jax.nn.one_hot(slots, self.hyper.scale.shape[0], dtype=bool)

    @staticmethod
    def _over(owned: Bool[Array, "items owners"], values: Float[Array, " items"]) -> Float[Array, " owners"]:
        # Not a scatter, which a GPU adds up in any order: losses would change in their last bits from run to run.
        return jnp.sum(jnp.where(owned, values[:, None], 0.0), axis=0)


@runtime_checkable
class Settled(Protocol):
    """An objective whose losses of an evaluation follow from those of its rows, for any trial's numbers."""

    def settle(
        self, rows: Sequence[TokenRow], losses: Float[np.ndarray, " rows"], numbers: Mapping[str, float]
    ) -> dict[str, Float[np.ndarray, " samples"]]:
        """Returns of each sample its ``loss``, and metrics that no batch by itself has.

        Args:
            rows: Of the evaluation, sample by sample.
            losses: Of each row, as of `Terms.rows`.
            numbers: `trial_values` of the trial.
        """

    def settles(self, numbers: Mapping[str, float]) -> bool:
        """Whether the losses of a trial depend on all rows at once: no batch has them."""

    def mean_loss(
        self, rows: Sequence[TokenRow], losses: Float[np.ndarray, " rows"], numbers: Mapping[str, float]
    ) -> float:
        """Returns the loss of an evaluation; arguments as of `settle`."""


@runtime_checkable
class Objective(Samples, Protocol):
    """The function that trials minimize. Slots share nothing: each sum is over a slot's own samples."""

    @property
    def trial_values(self) -> tuple[str, ...]:
        """Names of the numbers of a trial that it reads in `Hyper.objective`."""

    def __call__(self, outputs: Outputs) -> Terms:
        """Returns each slot's loss and metrics of a batch; traced: the same operations for any trials."""
