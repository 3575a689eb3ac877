"""Trials by a metric of the task: a lead within the noise of counting is none, and the loss decides."""

import math
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import NamedTuple

from altojax.early_exit.curve import Curve

ACCURACY = "accuracy"
"""Name in `Curve.more`, and in curve files, of the share of questions that were answered right; nan where not asked."""
ACCURACY_ERROR = "accuracy_error"
"""Name of its standard error, as `binomial_error` has it."""


class Score(NamedTuple):
    """What a trial is compared by.

    Attributes:
        accuracy: Share of questions answered right, from 0 to 1; nan where it was not asked.
        error: Standard error of that; nan likewise.
        loss: Validation loss in nats, which decides where accuracies are tied.
    """

    accuracy: float
    error: float
    loss: float

    @classmethod
    def of(cls, accuracy: Sequence[float], loss: float) -> "Score":
        """Returns the score of an accuracy with its error, or of nothing where it was not asked, and a loss."""
        share, error = accuracy or (math.nan, math.nan)
        return cls(share, error, loss)

    @property
    def asked(self) -> bool:
        """Whether it has an accuracy."""
        return not math.isnan(self.accuracy)


def binomial_error(hits: int, questions: int) -> float:
    """Returns the standard error of a share, that of two more hits and two more misses (Agresti & Coull 1998).

    So it is not 0 where all answers were right, or none.

    Args:
        hits: Answers that were right.
        questions: Of all, at least 1.
    """
    share = (hits + 2) / (questions + 4)
    return math.sqrt(share * (1 - share) / (questions + 4))


def are_tied(one: Score, other: Score) -> bool:
    """Whether accuracies differ by no more than the standard error of their difference.

    The errors are taken as independent. Both are counted over the same questions, so their difference has less.
    """
    if not (one.asked and other.asked):
        return one.asked == other.asked
    return abs(one.accuracy - other.accuracy) <= math.hypot(one.error, other.error)


def beats(one: Score, other: Score) -> bool:
    """Whether a score is better than another: more accurate beyond the noise, else of a lower loss.

    One that was asked beats one that was not.
    """
    if are_tied(one, other):
        return one.loss < other.loss
    return one.asked and (not other.asked or one.accuracy > other.accuracy)


def by_score[Name: (int, str)](scores: Mapping[Name, Score]) -> list[Name]:
    """Returns names from the best to the worst.

    Who is tied with the most accurate comes first, from the lowest loss to the highest, then likewise who is tied with
    the most accurate of the rest. Those that were not asked come last. Of equals the first name comes first.
    """
    accurate = sorted(scores, key=lambda name: (-scores[name].accuracy if scores[name].asked else math.inf, name))
    ranked: list[Name] = []
    while accurate:
        leader = scores[accurate[0]]
        tied = [are_tied(scores[name], leader) for name in accurate]
        ranked += sorted(compress(accurate, tied), key=lambda name: (scores[name].loss, name))
        accurate = [name for name, is_one in zip(accurate, tied, strict=True) if not is_one]
    return ranked


def leader_of[Name: (int, str)](scores: Mapping[Name, Score]) -> Name:
    """Returns the best of at least one, as `by_score` ranks them."""
    return by_score(scores)[0]


def accuracy_text(accuracy: float, error: float) -> str:
    """Returns an accuracy in words."""
    return f"accuracy {100 * accuracy:.1f} ± {100 * error:.1f} %"


def score_of(curve: Curve, loss: float) -> Score:
    """Returns the score of a trial by the accuracy of its last evaluation and a loss."""
    return Score(float(curve.more[ACCURACY][-1]), float(curve.more[ACCURACY_ERROR][-1]), loss)
