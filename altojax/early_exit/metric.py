"""Trials by a metric of the task: a lead within its noise is none, and the loss decides."""

import math
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import NamedTuple

from altojax.early_exit.curve import Curve

METRICS = ("accuracy", "exact_match", "score", "preference")
"""What trials may be selected by beside the loss: of preference tuning, how often the chosen answer is preferred."""
BETA = 0.1
"""The β at which the losses of preference tuning are compared, whatever each trial's own."""
_NAMES = {"preference": "rewards/accuracies"}
_COMPARABLE = {"preference": "dpo_loss"}


def metric_names(metric: str, *, average: bool = False) -> tuple[str, str]:
    """Returns the names in `Curve.more`, and in curve files, of a metric and of its standard error: its own, or TRL's.

    Both are nan where it was not measured.

    Args:
        metric: One of `METRICS`.
        average: Of the trial's running average, rather than of its adapter.
    """
    name = _NAMES.get(metric, metric)
    name = f"average_{name}" if average else name
    return name, f"{name}_error"


def comparable_loss(metric: str, *, average: bool = False) -> str | None:
    """Returns the name, likewise, of the loss that decides where a metric is tied; None is the validation loss.

    The validation losses of preference tuning are of each trial's own kind and β, and cannot be compared.
    """
    name = _COMPARABLE.get(metric)
    return f"average_{name}" if name and average else name


_ALL = [
    (*metric_names(metric, average=average), comparable_loss(metric, average=average))
    for metric in METRICS
    for average in (False, True)
]
METRIC_NAMES = tuple(name for names in _ALL for name in names if name is not None)
"""All of these names."""


class Score(NamedTuple):
    """What a trial is compared by.

    Attributes:
        metric: The mean of its answers' scores, from 0 to 1; of answers that are right or wrong, the share of right
            ones. nan where it was not asked.
        error: Standard error of that; nan likewise.
        loss: The loss in nats that decides where metrics are tied: the validation loss, or that of `comparable_loss`.
    """

    metric: float
    error: float
    loss: float

    @classmethod
    def of(cls, metric: Sequence[float], loss: float) -> "Score":
        """Returns the score of what `measured` gave, or of nothing where it was not asked, and a validation loss."""
        mean, error, *tie = metric or (math.nan, math.nan)
        return cls(mean, error, tie[0] if tie else loss)

    @classmethod
    def among(cls, measured: Mapping[str, float | None], loss: float, *, average: bool = False) -> "Score":
        """Returns the score of an adapter, or of its running average, by what was measured, which has names."""
        for metric in METRICS:
            mean, error = map(measured.get, metric_names(metric, average=average))
            if mean is not None and error is not None:
                tie = measured.get(comparable_loss(metric, average=average) or "")
                return cls(mean, error, loss if tie is None else tie)
        return cls.of((), loss)

    @property
    def asked(self) -> bool:
        """Whether it has a metric."""
        return not math.isnan(self.metric)

    @property
    def measured(self) -> list[float]:
        """The metric with its error, and the loss that decides ties; nothing where it was not asked."""
        return [self.metric, self.error, self.loss] if self.asked else []


def mean_and_error(scores: Sequence[float]) -> tuple[float, float]:
    """Returns the mean of scores and its standard error, that of two more of 1 and two more of 0.

    So it is not 0 where all are alike. Of scores that are 0 or 1 it is that of a share (Agresti & Coull 1998).

    Args:
        scores: From 0 to 1; at least one.
    """
    mean, square = (sum(one**power for one in scores) / len(scores) for power in (1, 2))
    return mean, _error(mean, square, len(scores))


def error_of_share(share: float, count: int) -> float:
    """Returns the standard error of a share of so many, as `mean_and_error` does."""
    return _error(share, share, count)


def _error(mean: float, square: float, count: int) -> float:
    mean, square = ((one * count + 2) / (count + 4) for one in (mean, square))
    return math.sqrt(max(square - mean**2, 0.0) / (count + 4))


def are_tied(one: Score, other: Score) -> bool:
    """Whether metrics differ by no more than the standard error of their difference.

    The errors are taken as independent. Both are of the same questions, so their difference has less.
    """
    if not (one.asked and other.asked):
        return one.asked == other.asked
    return abs(one.metric - other.metric) <= math.hypot(one.error, other.error)


def beats(one: Score, other: Score) -> bool:
    """Whether a score is better than another: higher beyond the noise, else of a lower loss.

    One that was asked beats one that was not.
    """
    if are_tied(one, other):
        return one.loss < other.loss
    return one.asked and (not other.asked or one.metric > other.metric)


def by_score[Name: (int, str)](scores: Mapping[Name, Score]) -> list[Name]:
    """Returns names from the best to the worst.

    Who is tied with the highest comes first, from the lowest loss to the highest, then likewise who is tied with the
    highest of the rest. Those that were not asked come last. Of equals the first name comes first.
    """
    highest = sorted(scores, key=lambda name: (-scores[name].metric if scores[name].asked else math.inf, name))
    ranked: list[Name] = []
    while highest:
        leader = scores[highest[0]]
        tied = [are_tied(scores[name], leader) for name in highest]
        ranked += sorted(compress(highest, tied), key=lambda name: (scores[name].loss, name))
        highest = [name for name, is_one in zip(highest, tied, strict=True) if not is_one]
    return ranked


def leader_of[Name: (int, str)](scores: Mapping[Name, Score]) -> Name:
    """Returns the best of at least one, as `by_score` ranks them."""
    return by_score(scores)[0]


def metric_text(metric: str, mean: float, error: float | None = None) -> str:
    """Returns a metric in words.

    Args:
        metric: One of `METRICS`.
        mean: From 0 to 1.
        error: Its standard error, if that is to be told.
    """
    margin = "" if error is None else f" ± {100 * error:.1f}"
    said = "preference accuracy" if metric == "preference" else metric.replace("_", " ")
    return f"{said} {100 * mean:.1f}{margin} %"


def score_of(curve: Curve, names: tuple[str, str], loss: float) -> Score:
    """Returns the score of a trial by the metric of its last evaluation, whose names are given, and a loss."""
    mean, error = (float(curve.more[name][-1]) for name in names)
    return Score(mean, error, loss)
