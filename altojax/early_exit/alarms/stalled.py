"""Ends trials that get no better: classic early stopping."""

import numpy as np
from jaxtyping import Bool

from altojax.early_exit.curve import Curve
from altojax.early_exit.rule import Alarm, Count
from altojax.early_exit.signals import finite_or_nan, in_a_row
from jaxrun.terminal.sizes import counted


class Stalled(Alarm):
    """Ends a trial that has reached no new best validation loss for a while: classic early stopping.

    Attributes:
        patience: Evaluations without a new best.
    """

    name = "stalled"
    reason = "stalled"

    patience: Count = 5

    def raised(self, curve: Curve, train_average: np.ndarray) -> Bool[np.ndarray, "*trials n"]:
        """The last `patience` evaluations brought no validation loss below the best before them."""
        val_loss = finite_or_nan(curve.val_loss)
        best = np.fmin.accumulate(val_loss, axis=-1)
        improved = np.zeros(val_loss.shape, bool)
        improved[..., :1] = True
        first_finite = np.isnan(best[..., :-1]) & ~np.isnan(best[..., 1:])
        improved[..., 1:] = (val_loss[..., 1:] < best[..., :-1]) | first_finite
        return in_a_row(~improved, self.patience)

    def detail(self, curve: Curve, train_average: np.ndarray) -> str:
        """Says for how many evaluations, and what the best was."""
        best = np.min(curve.val_loss, where=np.isfinite(curve.val_loss), initial=np.inf)
        return f"no new best validation loss in {counted(self.patience, 'evaluation')}; the best was {best:.4g}"
