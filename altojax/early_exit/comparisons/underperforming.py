"""Keeps the best share of a task's trials, those that fall fast, and those that noise may have held back."""

from collections.abc import Mapping
from typing import Annotated, Self

import numpy as np
import pydantic

from altojax.early_exit.curve import Curve
from altojax.early_exit.rule import (
    Comparison,
    Count,
    NonNegative,
    ScheduleShares,
    Share,
    Verdict,
    check_ascending,
    rounded_up,
)
from altojax.early_exit.signals import last_loss, ranking


class Underperforming(Comparison):
    """Compares a task's living trials at rungs, all at the same share of their schedule, and keeps the best of them.

    Kept at a rung are the best share by validation loss, those that are falling towards a low loss, and those whose
    loss cannot be told from the best one's for noise.

    Attributes:
        at: Rungs, as shares of the schedule, ascending. None comes before all trials have warmed up and have been
            evaluated twice, or once where they are ranked by an average (`altojax.early_exit.milestones`).
        waits: Whether a rung that comes before the second evaluation waits for it; else it stays where it is, and the
            second is halfway to it. Ranked by an average, a trial needs no second.
        keep: Share of the living trials to keep, one for each rung; a part of a trial counts as one.
        falling: Share of the living trials to keep beside those, by their projected loss.
        horizon: How far the recent slope is followed, as a share of the remaining schedule.
        span: How much is recent, as a share of the schedule.
        noise: Trials within this many standard deviations of recent noise of the best are kept too, at most as many as
            are kept for their rank.
        at_least: Trials to keep at any rung.
    """

    name = "underperforming"

    at: ScheduleShares = (0.05,)
    keep: ScheduleShares = (0.25,)
    waits: bool = True
    falling: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    horizon: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.3
    span: Share = 0.1
    noise: NonNegative = 0.0
    at_least: Count = 1

    @pydantic.model_validator(mode="after")
    def _one_share_for_each_rung(self) -> Self:
        check_ascending(self.at)
        if len(self.keep) != len(self.at):
            raise ValueError(f"keep has {len(self.keep)} shares, expected {len(self.at)}: one for each rung in at")
        return self

    @property
    def rungs(self) -> tuple[float, ...]:
        """As `at` says."""
        return self.at

    @property
    def waits_for_second(self) -> bool:
        """As `waits` says."""
        return self.waits

    def keeps(self, index: int, living: int) -> int:
        """Returns how many are kept for their rank alone."""
        return min(max(self.at_least, rounded_up(self.keep[index] * living)), living)

    def compare(self, index: int, curves: Mapping[str, Curve], living: int) -> dict[str, Verdict]:
        """Ends all trials but the best, those close to the best and those that are falling."""
        losses = self.losses(curves)
        ranked, count = self.order(curves), self.keeps(index, living)
        kept = set(ranked[:count])
        if self.noise:
            noise = np.median([scatter(curves[name], span=self.span) for name in sorted(kept)])
            lowest = min(losses.values())
            kept |= {name for name in ranked[: 2 * count] if losses[name] <= lowest + self.noise * noise}
        if self.falling:
            heading = {
                name: projected_loss(curve, span=self.span, horizon=self.horizon) for name, curve in curves.items()
            }
            kept |= set(ranking(heading)[: rounded_up(self.falling * living)])
        return self.end_all_but(kept, curves)


def projected_loss(curve: Curve, *, span: float, horizon: float) -> float:
    """Extrapolates a falling validation loss.

    A least-squares line through the evaluations of the last `span` of the schedule is followed for `horizon` of what
    remains of it. A line that rises is followed nowhere: the projection is then its value at the last evaluation.

    Args:
        curve: The trial's evaluations.
        span: Share of the schedule.
        horizon: Share of the remaining schedule.

    Returns:
        The projected loss; the last loss where there are fewer than two evaluations in the span; inf where the last
        loss is not finite.
    """
    last = last_loss(curve)
    recent = _recent(curve, span)
    if not np.isfinite(last) or np.count_nonzero(recent) < 2:
        return last
    x, y = curve.fraction[recent], curve.val_loss[recent]
    with np.errstate(over="ignore", invalid="ignore"):
        centred = x - x.mean()
        tilt = centred @ y / (centred @ centred)
        now = y.mean() + tilt * (x[-1] - x.mean())
        projected = now + min(tilt, 0.0) * horizon * (1.0 - x[-1])
    return float(projected) if np.isfinite(projected) else last


def scatter(curve: Curve, *, span: float) -> float:
    """Standard deviation of the noise in the validation losses of the last `span` of the schedule.

    Second differences remove any straight trend and carry six times the variance of independent noise.

    Returns:
        In units of the loss; 0 where there are fewer than three evaluations in the span.
    """
    recent = curve.val_loss[_recent(curve, span)]
    if recent.size < 3:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        noise = float(np.sqrt(np.mean(np.diff(recent, 2) ** 2) / 6.0))
    return noise if np.isfinite(noise) else 0.0


def _recent(curve: Curve, span: float) -> np.ndarray:
    """Mask of the finite evaluations in the last `span` of the schedule."""
    return (curve.fraction > curve.fraction[-1:] - span - 1e-9) & np.isfinite(curve.val_loss)
