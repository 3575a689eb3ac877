"""Learning curves: what trials measured at each of their evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


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


def stacked(curves: Sequence[Curve]) -> Curve:
    """Returns curves of equal length as one, each value float64 [trials, n]; of other values those that all have."""
    shared = set.intersection(*(set(one.more) for one in curves))
    return Curve(
        np.stack([one.fraction for one in curves]),
        np.stack([one.train_loss for one in curves]),
        np.stack([one.val_loss for one in curves]),
        {name: np.stack([one.more[name] for one in curves]) for name in sorted(shared)},
    )
