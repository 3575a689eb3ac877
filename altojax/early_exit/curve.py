"""Learning curves: what trials measured at each of their evaluations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

AVERAGE = "average_val_loss"
"""Name in `Curve.more` of the validation loss of a trial's averaged adapter, nan where it was not evaluated."""


def average_name(window: int) -> str:
    """Returns the name in `Curve.more`, and in curve files, of the loss of the average of the so-manieth window.

    Args:
        window: From 0, which is the one that rules read.
    """
    return AVERAGE if window == 0 else f"{AVERAGE}_{window + 1}"


def average_split(window: int) -> str:
    """Returns the split of such a loss among a journal's points: ``average``, ``average_2`` and so on."""
    return average_name(window).replace(AVERAGE, "average")


@dataclass(frozen=True)
class Curve:
    """One trial's evaluations so far, oldest first; or those of several trials, as `stacked` puts them together.

    Attributes:
        fraction: Share of the trial's own schedule done at each evaluation, float64 [n], ascending.
        train_loss: Mean training loss since the evaluation before, float64 [n]; nan or inf where it was not finite.
        val_loss: Validation loss, float64 [n]; nan or inf where it was not finite.
        more: Whatever else was measured, float64 [n] by name.
    """

    fraction: np.ndarray
    train_loss: np.ndarray
    val_loss: np.ndarray
    more: Mapping[str, np.ndarray] = field(default_factory=dict)

    def first(self, count: int) -> "Curve":
        """Returns the curve as it was after so many evaluations."""
        more = {name: values[..., :count] for name, values in self.more.items()}
        return Curve(self.fraction[..., :count], self.train_loss[..., :count], self.val_loss[..., :count], more)

    @property
    def averaged(self) -> "Curve":
        """The same with the averaged adapter's validation losses in place of the raw ones; nan before there is one."""
        return self.by(AVERAGE)

    def by(self, name: str) -> "Curve":
        """Returns the same with the loss of a name in place of the validation losses; nan where there is none."""
        return replace(self, val_loss=self.more.get(name, np.full_like(self.val_loss, np.nan)))


def stacked(curves: Sequence[Curve], names: Iterable[str] = ()) -> Curve:
    """Returns curves of equal length as one, each value float64 [trials, n].

    Args:
        curves: All have the other values that are named.
        names: Of those other values.
    """
    return Curve(
        np.stack([one.fraction for one in curves]),
        np.stack([one.train_loss for one in curves]),
        np.stack([one.val_loss for one in curves]),
        {name: np.stack([one.more[name] for one in curves]) for name in names},
    )
