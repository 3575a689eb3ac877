"""One config section for each early-exit rule: what it does and the numbers it takes."""

import itertools
import math
from typing import Annotated, Any, Literal, Self

import pydantic

from jaxrun.config.config import StrictModel

Share = Annotated[float, pydantic.Field(gt=0, lt=1)]
ScheduleShares = Annotated[tuple[Share, ...], pydantic.Field(min_length=1, strict=False)]
Count = Annotated[int, pydantic.Field(ge=1)]
MOST_RUNGS = 1000
NonNegative = Annotated[float, pydantic.Field(ge=0)]


def _check_ascending(at: tuple[float, ...]) -> None:
    if any(later <= earlier for earlier, later in itertools.pairwise(at)):
        raise ValueError(f"rungs {list(at)} do not ascend, expected each later than the one before")


class Rule(StrictModel):
    """What every rule has. Naming a rule in a config turns it on, unless ``enabled`` is false.

    Attributes:
        enabled: Whether it is on; naming the rule turns it on, and ``diverging: false`` turns it off.
    """

    enabled: bool = False

    @pydantic.model_serializer(mode="wrap")
    def _as_written(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any] | bool:
        """Writes a rule of which nothing else was set as true or false: a number beside false would mean nothing."""
        found: dict[str, Any] = dump(self)
        return found["enabled"] if found.keys() == {"enabled"} else found


class NotFinite(Rule):
    """Ends a trial whose training or validation loss is not finite.

    Attributes:
        patience: Evaluations in a row.
    """

    patience: Count = 3


class Diverging(Rule):
    """Ends a trial whose smoothed training loss and validation loss both rise.

    Attributes:
        window: Evaluations under the least-squares slope.
        slope: Least slope, in loss per evaluation.
        patience: Evaluations in a row.
    """

    window: Annotated[int, pydantic.Field(ge=2)] = 2
    slope: float = 0.001
    patience: Count = 2


class BlownUp(Rule):
    """Ends a trial as diverging when its smoothed training loss is far above its best and above where it began.

    Attributes:
        factor: Times its best.
        patience: Evaluations in a row.
    """

    factor: Annotated[float, pydantic.Field(gt=1)] = 1.5
    patience: Count = 3


class Overfitting(Rule):
    """Ends a trial whose validation loss v is far above its smoothed training loss m; its best checkpoint stays.

    Attributes:
        gap: Least (v − m)/m.
        patience: Evaluations in a row.
    """

    gap: NonNegative = 0.1
    patience: Count = 2


class Stalled(Rule):
    """Ends a trial that has reached no new best validation loss for a while: classic early stopping.

    Attributes:
        patience: Evaluations without a new best.
    """

    patience: Count = 5


class Underperforming(Rule):
    """Compares a task's living trials at rungs, all at the same share of their schedule, and keeps the best of them.

    Kept at a rung are the best share by validation loss, those that are falling towards a low loss, and those whose
    loss cannot be told from the best one's for noise.

    Attributes:
        at: Rungs, as shares of the schedule, ascending. None comes before all trials have warmed up and have been
            evaluated twice (`altojax.early_exit.milestones`).
        waits: Whether a rung that comes before the second evaluation waits for it; else it stays where it is, and the
            second is halfway to it.
        keep: Share of the living trials to keep, one for each rung; a part of a trial counts as one.
        rank_by: The lowest validation loss so far, or the last.
        falling: Share of the living trials to keep beside those, by their projected loss.
        horizon: How far the recent slope is followed, as a share of the remaining schedule.
        span: How much is recent, as a share of the schedule.
        noise: Trials within this many standard deviations of recent noise of the best are kept too, at most as many as
            are kept for their rank.
        at_least: Trials to keep at any rung.
    """

    at: ScheduleShares = (0.05,)
    keep: ScheduleShares = (0.25,)
    waits: bool = True
    rank_by: Literal["best", "last"] = "last"
    falling: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    horizon: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.3
    span: Share = 0.1
    noise: NonNegative = 0.0
    at_least: Count = 1

    @pydantic.model_validator(mode="after")
    def _one_share_for_each_rung(self) -> Self:
        _check_ascending(self.at)
        if len(self.keep) != len(self.at):
            raise ValueError(f"keep has {len(self.keep)} shares, expected {len(self.at)}: one for each rung in at")
        return self


class Halving(Rule):
    """Successive halving: keeps the best 1/eta of the living trials by their last validation loss, at each rung.

    Attributes:
        first: The first rung, as a share of the schedule; each further one is eta times as far.
        eta: How many times fewer trials go on.
    """

    first: Share = 0.0625
    eta: Annotated[float, pydantic.Field(gt=1)] = 2.0

    @property
    def rungs(self) -> int:
        """How many there are."""
        return math.ceil(-math.log(self.first) / math.log(self.eta) - 1e-9)

    @pydantic.model_validator(mode="after")
    def _rungs_are_few(self) -> Self:
        if self.rungs > MOST_RUNGS:
            raise ValueError(f"comes to {self.rungs:,} rungs, expected at most {MOST_RUNGS:,}: a larger eta or first")
        return self


class Median(Rule):
    """Ends, at rungs, trials whose best validation loss is above the median of all living trials' mean losses so far.

    Attributes:
        at: Rungs, as shares of the schedule, ascending.
    """

    at: ScheduleShares = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    @pydantic.model_validator(mode="after")
    def _rungs_ascend(self) -> Self:
        _check_ascending(self.at)
        return self


class TopK(Rule):
    """Keeps the few best trials, by their last validation loss, after a constant number of steps.

    Attributes:
        steps: Optimizer steps, the same for all trials however long their schedules; below 1 a share of the schedule.
        keep: Trials to keep.
    """

    steps: Annotated[float, pydantic.Field(gt=0)] = 0.2
    keep: Count = 8
