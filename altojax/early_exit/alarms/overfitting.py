"""Ends trials that learn their training rows by heart (ALTO, arXiv 2604.05426)."""

import numpy as np
from jaxtyping import Bool

from altojax.early_exit.curve import Curve
from altojax.early_exit.rule import Alarm, Count, NonNegative
from altojax.early_exit.signals import finite_or_nan, in_a_row
from jaxrun.terminal.sizes import counted


class Overfitting(Alarm):
    """Ends a trial whose validation loss v is far above its smoothed training loss m; its best checkpoint stays.

    Attributes:
        gap: Least (v − m)/m.
        patience: Evaluations in a row.
    """

    name = "overfitting"
    reason = "overfitting"

    gap: NonNegative = 0.1
    patience: Count = 2

    def raised(self, curve: Curve, train_average: np.ndarray) -> Bool[np.ndarray, "*trials n"]:
        """(v − m)/|m| > `gap`, `patience` evaluations in a row."""
        above = finite_or_nan(curve.val_loss) - train_average
        return in_a_row(above > self.gap * np.abs(train_average), self.patience)

    def detail(self, curve: Curve, train_average: np.ndarray) -> str:
        """Says how far apart they were, and for how long."""
        return (
            f"validation loss {curve.val_loss[-1]:.4g} was more than {self.gap:.0%} above the smoothed training loss "
            f"{train_average[-1]:.4g} at {counted(self.patience, 'evaluation')} in a row"
        )
