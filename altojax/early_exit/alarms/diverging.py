"""Ends trials whose training and validation loss rise together (ALTO, arXiv 2604.05426)."""

from typing import Annotated

import numpy as np
import pydantic
from jaxtyping import Bool

from altojax.early_exit import signals
from altojax.early_exit.curve import Curve
from altojax.early_exit.rule import Alarm, Count
from jaxrun.terminal.sizes import counted


class Diverging(Alarm):
    """Ends a trial whose smoothed training loss and validation loss both rise.

    Attributes:
        window: Evaluations under the least-squares slope.
        slope: Least slope, in loss per evaluation.
        patience: Evaluations in a row.
    """

    name = "diverging"
    reason = "diverging"

    window: Annotated[int, pydantic.Field(ge=2)] = 2
    slope: float = 0.001
    patience: Count = 2

    def raised(self, curve: Curve, train_average: np.ndarray) -> Bool[np.ndarray, "*trials n"]:
        """Both slopes are at least `slope`, `patience` evaluations in a row."""
        slopes = (signals.slope(loss, self.window) for loss in (train_average, curve.val_loss))
        return signals.in_a_row(np.logical_and(*(one >= self.slope for one in slopes)), self.patience)

    def detail(self, curve: Curve, train_average: np.ndarray) -> str:
        """Says how fast they rose, and to what."""
        return (
            f"training and validation loss both rose by {self.slope:g} or more per evaluation, "
            f"{counted(self.patience, 'evaluation')} in a row, to {train_average[-1]:.4g} and {curve.val_loss[-1]:.4g}"
        )
