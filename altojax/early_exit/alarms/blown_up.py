"""Ends trials whose training loss has blown up."""

from typing import Annotated

import numpy as np
import pydantic
from jaxtyping import Bool

from altojax.early_exit.curve import Curve
from altojax.early_exit.rule import Alarm, Count
from altojax.early_exit.signals import in_a_row
from jaxrun.terminal.sizes import counted


class BlownUp(Alarm):
    """Ends a trial as diverging when its smoothed training loss is far above its best and above where it began.

    Attributes:
        factor: Times its best.
        patience: Evaluations in a row.
    """

    name = "blown_up"
    reason = "diverging"

    factor: Annotated[float, pydantic.Field(gt=1)] = 1.5
    patience: Count = 3

    def raised(self, curve: Curve, train_average: np.ndarray) -> Bool[np.ndarray, "*trials n"]:
        """The average is above both `factor` times its best and its first value, `patience` evaluations in a row.

        Where the best is negative, `factor` times means as far above it as for the positive loss of the same size.
        """
        best = np.fmin.accumulate(train_average, axis=-1)
        first = np.argmax(np.isfinite(train_average), axis=-1)[..., None]
        initial = np.take_along_axis(train_average, first, axis=-1)
        limit = np.fmax(best + (self.factor - 1.0) * np.abs(best), initial)
        return in_a_row(train_average > limit, self.patience)

    def detail(self, curve: Curve, train_average: np.ndarray) -> str:
        """Says how high it was, and for how long."""
        return (
            f"smoothed training loss {train_average[-1]:.4g} was above {self.factor:g} times its best and above its "
            f"first value at {counted(self.patience, 'evaluation')} in a row"
        )
