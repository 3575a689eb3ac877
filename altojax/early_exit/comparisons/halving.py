"""Successive halving (Jamieson & Talwalkar 2016)."""

import math
from collections.abc import Mapping
from typing import Annotated, Self

import pydantic

from altojax.early_exit.curve import Curve
from altojax.early_exit.rule import Comparison, Share, Verdict, rounded_up

MOST_RUNGS = 1000


class Halving(Comparison):
    """Successive halving: keeps the best 1/eta of the living trials by their validation loss, at each rung.

    Attributes:
        first: The first rung, as a share of the schedule; each further one is eta times as far.
        eta: How many times fewer trials continue.
    """

    name = "halving"

    first: Share = 0.0625
    eta: Annotated[float, pydantic.Field(gt=1)] = 2.0

    @pydantic.model_validator(mode="after")
    def _rungs_are_few(self) -> Self:
        if self._count > MOST_RUNGS:
            raise ValueError(f"comes to {self._count:,} rungs, expected at most {MOST_RUNGS:,}: a larger eta or first")
        return self

    @property
    def _count(self) -> int:
        return math.ceil(-math.log(self.first) / math.log(self.eta) - 1e-9)

    @property
    def rungs(self) -> tuple[float, ...]:
        """From `first` on, each `eta` times as far as the one before."""
        return tuple(self.first * self.eta**k for k in range(self._count))

    def keeps(self, index: int, living: int) -> int:
        """Returns one in `eta`, rounded up."""
        return rounded_up(living / self.eta)

    def compare(self, index: int, curves: Mapping[str, Curve], living: int) -> dict[str, Verdict]:
        """Ends all trials but the best."""
        return self.end_all_but(set(self.order(curves)[: self.keeps(index, living)]), curves)
