"""Ends trials whose losses are no numbers any more."""

import numpy as np
from jaxtyping import Bool

from altojax.early_exit.curve import Curve
from altojax.early_exit.rule import Alarm, Count
from altojax.early_exit.signals import in_a_row
from jaxrun.terminal.sizes import counted

BAD_UPDATES = "updates in a row were not finite"
"""The detail where a trial is ended for these, after their number."""


class NotFinite(Alarm):
    """Ends a trial whose training or validation loss is not finite.

    Attributes:
        patience: Evaluations in a row.
    """

    name = "not_finite"
    reason = "not finite"
    ends_broken = True

    patience: Count = 3

    def raised(self, curve: Curve, train_average: np.ndarray) -> Bool[np.ndarray, "*trials n"]:
        """Either loss was not finite, `patience` evaluations in a row."""
        return in_a_row(~(np.isfinite(curve.train_loss) & np.isfinite(curve.val_loss)), self.patience)

    def detail(self, curve: Curve, train_average: np.ndarray) -> str:
        """Says for how many evaluations."""
        return f"losses were not finite at {counted(self.patience, 'evaluation')} in a row"
