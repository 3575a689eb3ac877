"""Predicted cost of asking trials for accuracy, in samples of training.

No clock is read: a run that is interrupted and resumed asks the same.
"""

from collections.abc import Callable, Sequence

TRAINING_PASSES = 2.0
"""Forward passes that training a row costs: one, and one backward as far as activations, since the base is frozen."""


def questions_paid_for(
    samples: Sequence[int], rungs: Sequence[Sequence[float]], keeps: Callable[[int, int], int], labels: int
) -> float:
    """Returns how many questions cost as much, over a whole run, as its training does.

    The base is asked once, and every trial at each rung that it comes to and at its end. A question is a row for every
    label, about as long as a training row.

    Args:
        samples: Of the schedule of each trial.
        rungs: Of each trial, ascending, as shares of its schedule; as many for all.
        keeps: (rung, living trials) -> how many are expected to go on.
        labels: Of a question.
    """
    mean = sum(samples) / len(samples)
    living, asked, trained, before = len(samples), 1, 0.0, 0.0
    for index, shares in enumerate(zip(*rungs, strict=True)):
        at = sum(shares) / len(shares)
        trained += living * mean * (at - before)
        asked += living
        living, before = keeps(index, living), at
    trained += living * mean * (1 - before)
    return TRAINING_PASSES * trained / ((asked + living) * labels)
