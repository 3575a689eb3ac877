"""Median stopping (Golovin et al. 2017)."""

from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
import pydantic

from altojax.early_exit.curve import Curve
from altojax.early_exit.rule import Comparison, RankBy, ScheduleShares, Verdict, check_ascending, rounded_up
from altojax.early_exit.signals import mean_loss


class Median(Comparison):
    """Ends, at rungs, trials whose validation loss is above the median of all living trials' mean losses so far.

    Attributes:
        rank_by: What of a trial is held against that median, the lowest loss so far or the last; or both are of the
            running average of the adapter.
        select_by: Only by loss: a median of metrics would end half of the trials by chance.
        at: Rungs, as shares of the schedule, ascending.
    """

    name = "median"

    rank_by: RankBy = "best"
    select_by: Literal["loss"] = "loss"
    at: ScheduleShares = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    @pydantic.model_validator(mode="after")
    def _rungs_ascend(self) -> Self:
        check_ascending(self.at)
        return self

    @property
    def rungs(self) -> tuple[float, ...]:
        """As `at` says."""
        return self.at

    def keeps(self, index: int, living: int) -> int:
        """Returns half at the first rung: whoever is left after it mostly stays."""
        return rounded_up(living / 2) if index == 0 else living

    def compare(self, index: int, curves: Mapping[str, Curve], living: int) -> dict[str, Verdict]:
        """Ends the trials above the median."""
        middle = float(np.median([mean_loss(curve) for curve in curves.values()]))
        return {
            name: Verdict(
                "underperforming", f"{self.measure} {loss:.4g} was above its peers' median mean loss {middle:.4g}"
            )
            for name, loss in self.losses(curves).items()
            if loss > middle
        }
