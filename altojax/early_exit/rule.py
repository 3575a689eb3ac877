"""The interface of an early-exit rule: a config section that judges curves.

A rule is one file: a class of `Alarm` or `Comparison` whose fields are its numbers. Runs, replays, the simulator and
the queue's forecasts ask the same object, through `altojax.early_exit.rules.Rules`.
"""

import abc
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic
from jaxtyping import Bool

from altojax.early_exit import signals
from altojax.early_exit.curve import AVERAGE, Curve
from altojax.early_exit.metric import BETA, by_score, comparable_loss, metric_names, metric_text, score_of
from jaxrun.config.config import StrictModel

Share = Annotated[float, pydantic.Field(gt=0, lt=1)]
ScheduleShares = Annotated[tuple[Share, ...], pydantic.Field(min_length=1, strict=False)]
Count = Annotated[int, pydantic.Field(ge=1)]
NonNegative = Annotated[float, pydantic.Field(ge=0)]


@dataclass(frozen=True)
class Verdict:
    """A rule's reason to end a trial.

    Attributes:
        reason: In a word or two, such as ``diverging`` or ``underperforming``.
        detail: The same as a sentence with numbers.
    """

    reason: str
    detail: str


class Rule(StrictModel, abc.ABC):
    """The base of every rule. Naming a rule in a config turns it on, unless ``enabled`` is false.

    Attributes:
        name: Its key in ``early_exit``.
        enabled: Whether it is on; naming the rule turns it on, and ``diverging: false`` turns it off.
    """

    name: ClassVar[str]

    enabled: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """What it reads of a curve beside the two losses, by the names in `Curve.more`."""
        return ()

    @pydantic.model_serializer(mode="wrap")
    def _as_written(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any] | bool:
        """Writes a rule of which nothing else was set as true or false: a number beside false would mean nothing."""
        found: dict[str, Any] = dump(self)
        return found["enabled"] if found.keys() == {"enabled"} else found


class Alarm(Rule):
    """Judges one trial by its own curve, after each evaluation.

    Attributes:
        reason: Why a trial ends that it ends, as in `Verdict`.
        ends_broken: Whether it also ends a trial of which updates in a row were not finite.
    """

    reason: ClassVar[str]
    ends_broken: ClassVar[bool] = False

    @abc.abstractmethod
    def raised(self, curve: Curve, train_average: np.ndarray) -> Bool[np.ndarray, "*trials n"]:
        """Whether each evaluation ends its trial, judged from that evaluation and those before it only.

        So a run asks about the last evaluation of one curve, a replay about all evaluations of thousands at once.

        Args:
            curve: Of one trial, or stacked: values are float64 [*trials, n].
            train_average: The smoothed training loss, float64 [*trials, n]; nan before the first finite loss.
        """

    @abc.abstractmethod
    def detail(self, curve: Curve, train_average: np.ndarray) -> str:
        """Says in a sentence with numbers why the last evaluation of one trial ended it; arguments as of `raised`."""


SelectBy = Literal["loss", "accuracy", "exact_match", "score", "preference"]
RankBy = Literal["best", "last", "average"]
_MEASURES: dict[RankBy, str] = {
    "best": "best validation loss",
    "last": "last validation loss",
    "average": "averaged adapter's validation loss",
}


class Comparison(Rule):
    """Compares the living trials of a task at rungs. One of them at most is on.

    Attributes:
        rank_by: The lowest validation loss so far, the last, or that of the running average of the adapter, which does
            not bounce while the learning rate is high; the rule then reads no other.
        select_by: Rank by that loss, or by a metric of the task first, of which leads within its noise are none
            (`altojax.early_exit.metric`), and by that loss where metrics are tied; the metric is that of the running
            average where trials are ranked by it. A run sets it as its own, and for pairs as preference, where ties go
            by DPO's loss at a β of 0.1.
    """

    rank_by: RankBy = "last"
    select_by: SelectBy = "loss"

    @property
    def needs(self) -> tuple[str, ...]:
        """The averaged adapter's loss, and the metric with its error, where trials are ranked by them."""
        average = (AVERAGE,) if self.rank_by == "average" else ()
        return (*average, *self._metric, *([self._comparable] if self._comparable else []))

    @property
    def _metric(self) -> tuple[str, ...]:
        return () if self.select_by == "loss" else metric_names(self.select_by, average=self.rank_by == "average")

    @property
    def _comparable(self) -> str | None:
        return comparable_loss(self.select_by, average=self.rank_by == "average")

    @property
    def measure(self) -> str:
        """What trials are ranked by, in words."""
        said = _MEASURES[self.rank_by]
        return said if self._comparable is None else said.replace("validation loss", f"DPO loss at β {BETA:g}")

    def judged(self, curve: Curve) -> Curve:
        """Returns a trial's curve as it is compared.

        It has the averaged adapter's losses where it is ranked by them, and losses that can be compared where
        validation losses cannot.
        """
        if self._comparable is not None:
            return curve.by(self._comparable)
        return curve.averaged if self.rank_by == "average" else curve

    def losses(self, curves: Mapping[str, Curve]) -> dict[str, float]:
        """Returns what each trial is ranked by, which is inf where its last loss is not finite.

        Args:
            curves: As `judged` returns them, by trial.
        """
        measure = signals.best_loss if self.rank_by == "best" else signals.last_loss
        return {name: measure(curve) for name, curve in curves.items()}

    def order(self, curves: Mapping[str, Curve]) -> list[str]:
        """Returns trial names from the best to the worst.

        Args:
            curves: As `judged` returns them, by trial.
        """
        losses = self.losses(curves)
        if self.select_by == "loss":
            return signals.ranking(losses)
        mean, error = self._metric
        return by_score({name: score_of(curve, (mean, error), losses[name]) for name, curve in curves.items()})

    def end_all_but(self, kept: set[str], curves: Mapping[str, Curve]) -> dict[str, Verdict]:
        """Ends the trials that are not kept, each with its place in the ranking.

        Args:
            kept: Names of trials.
            curves: Of all of them, as `judged` returns them.
        """
        ranked, losses = self.order(curves), self.losses(curves)

        def measured(name: str) -> str:
            found = [curves[name].more[one][-1] for one in self._metric[:1]]
            metric = "".join(f"{metric_text(self.select_by, mean)}, " for mean in found)
            return f"{metric}{self.measure} {losses[name]:.4g}"

        best = measured(ranked[0]).replace(f"{self.measure} ", "")
        return {
            name: Verdict(
                "underperforming",
                f"{measured(name)} ranked {place} of {len(curves)}; {len(kept)} went on, the best at {best}",
            )
            for place, name in enumerate(ranked, start=1)
            if name not in kept
        }

    @property
    @abc.abstractmethod
    def rungs(self) -> tuple[float, ...]:
        """Points at which trials are to be compared, ascending: below 1 shares of the schedule, else steps."""

    @property
    def evaluations(self) -> int:
        """How many a trial has had when it is compared: of raw losses one may mislead."""
        return 1 if self.rank_by == "average" else 2

    @property
    def waits_for_second(self) -> bool:
        """Whether a rung waits for a trial's second evaluation; else one is added before it."""
        return True

    @abc.abstractmethod
    def compare(self, index: int, curves: Mapping[str, Curve], living: int) -> dict[str, Verdict]:
        """Returns the trials to end at a rung, with the reason.

        Args:
            index: Of the rung, from 0.
            curves: Evaluations up to the rung, by trial, as `judged` returns them; the last loss of each is finite.
            living: How many trials were compared, those among them whose last loss was not finite.
        """

    @abc.abstractmethod
    def keeps(self, index: int, living: int) -> int:
        """Returns how many of so many living trials go on at a rung, as far as that is known without their curves."""


def check_ascending(at: tuple[float, ...]) -> None:
    """Checks that rungs ascend.

    Raises:
        ValueError: They do not.
    """
    if any(later <= earlier for earlier, later in itertools.pairwise(at)):
        raise ValueError(f"rungs {list(at)} do not ascend, expected each later than the one before")


def rounded_up(count: float) -> int:
    """Rounds up to at least one, forgiving the error of a product such as 0.07 · 100."""
    return max(1, math.ceil(count - 1e-9))
