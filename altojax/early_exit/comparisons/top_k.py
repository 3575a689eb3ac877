"""Keeps a few trials early on: the baseline that humbles clever rules."""

from collections.abc import Mapping
from typing import Annotated

import pydantic

from altojax.early_exit.curve import Curve
from altojax.early_exit.rule import Comparison, Count, Verdict


class TopK(Comparison):
    """Keeps the few best trials, by their validation loss, after a constant number of steps.

    Attributes:
        steps: Optimizer steps, the same for all trials however long their schedules; below 1 a share of the schedule.
        keep: Trials to keep.
    """

    name = "top_k"

    steps: Annotated[float, pydantic.Field(gt=0)] = 0.2
    keep: Count = 8

    @property
    def rungs(self) -> tuple[float, ...]:
        """One, after `steps`."""
        return (self.steps,)

    def keeps(self, index: int, living: int) -> int:
        """Returns `keep`, or all if they are fewer."""
        return min(self.keep, living)

    def compare(self, index: int, curves: Mapping[str, Curve], living: int) -> dict[str, Verdict]:
        """Ends all trials but the best."""
        return self.end_all_but(set(self.order(curves)[: self.keep]), curves)
