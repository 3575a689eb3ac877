"""Predicted cost of asking trials for a metric, in samples of training.

No clock is read: a run that is interrupted and resumed asks the same.
"""

from collections.abc import Callable, Sequence

TRAINING_PASSES = 2.0
"""Forward passes that training a row costs: one, and one backward as far as activations, since the base is frozen."""
NEW_TOKEN = 16.0
"""Tokens of a forward pass that cost as much as one that is generated: weights and caches are read for each alone."""


def questions_paid_for(
    samples: Sequence[int],
    rungs: Sequence[Sequence[float]],
    keeps: Callable[[int, int], int],
    passes: float,
    adapters: int = 1,
) -> float:
    """Returns how many questions cost as much, over a whole run, as its training does.

    The base is asked once, and every trial at each rung that it comes to and at its end.

    Args:
        samples: Of the schedule of each trial.
        rungs: Of each trial, ascending, as shares of its schedule; as many for all.
        keeps: (rung, living trials) -> how many are expected to go on.
        passes: Forward passes of a training row that a question costs: as many as it has labels, or `answer_passes`.
        adapters: Of a trial that are asked: its own, its running average, or both.
    """
    mean = sum(samples) / len(samples)
    living, asked, trained, before = len(samples), 0, 0.0, 0.0
    for index, shares in enumerate(zip(*rungs, strict=True)):
        at = sum(shares) / len(shares)
        trained += living * mean * (at - before)
        asked += living
        living, before = keeps(index, living), at
    trained += living * mean * (1 - before)
    return TRAINING_PASSES * trained / ((1 + adapters * (asked + living)) * passes)


def over_budget(select_by: str, budget: float, metric_s: float, training_s: float) -> str:
    """Says that measuring a metric took more than was predicted; nothing where it did not.

    Args:
        select_by: The metric.
        budget: `metric_budget`.
        metric_s: Seconds that it took, without compilations.
        training_s: Seconds of training, likewise.
    """
    if metric_s <= budget * training_s:
        return ""
    share = 100 * metric_s / training_s if training_s else 100.0
    return (
        f"measuring {select_by} took {share:.0f} % of the time of training, more than the {100 * budget:g} % that "
        "metric_budget predicted; a smaller one asks fewer rows"
    )


def answer_passes(prompt_tokens: float, new_tokens: int, row_tokens: float) -> float:
    """Returns the forward passes of a training row that answering a question costs.

    Args:
        prompt_tokens: Of a prompt.
        new_tokens: Of an answer, at most.
        row_tokens: Of a training row.
    """
    return (prompt_tokens + NEW_TOKEN * new_tokens) / row_tokens
