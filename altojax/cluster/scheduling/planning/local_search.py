"""Makes a list schedule better by trying it with a small change, again and again."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from altojax.cluster.scheduling.planning.list_schedule import Listed, list_schedule
from altojax.cluster.scheduling.planning.problem import Problem


@dataclass(frozen=True)
class Candidate:
    """A list schedule and what it was made from.

    Attributes:
        rule: Names what made it.
        columns: Of each task, the column of its width.
        order: First to start first.
        listed: When and where tasks run.
    """

    rule: str
    columns: list[int]
    order: list[int]
    listed: Listed

    def value(self, enough_s: float = 0.0) -> tuple[float, float]:
        """Less is better: the end, then the ends of tasks on average; all ends up to `enough_s` count as equal."""
        return max(self.listed.end_s, enough_s), sum(self.listed.ends_s)


def evaluate(
    problem: Problem, rule: str, columns: Sequence[int], order: Sequence[int], limit_s: float = float("inf")
) -> Candidate | None:
    """Returns the list schedule of an order and widths, or None where it ends after `limit_s`."""
    rows = np.arange(len(columns))
    widths = problem.widths[columns].tolist()
    durations_s = problem.durations_s[rows, columns].tolist()
    listed = list_schedule(order, widths, durations_s, problem.cluster, problem.busy, limit_s, problem.free)
    return None if listed is None else Candidate(rule, list(columns), list(order), listed)


def improve(problem: Problem, best: Candidate, tries: int, enough_s: float) -> Candidate:
    """Climbs from a schedule to a better one; the same input gives the same output.

    A step makes one task wider or narrower by one width, one wider and another narrower, or moves one in the order, and
    is kept unless the schedule ends later.

    Args:
        problem: What is planned.
        best: Where to begin.
        tries: Steps.
        enough_s: Stops once the schedule ends by then.
    """
    drawn = random.Random(0)
    choices = [np.flatnonzero(np.isfinite(row)).tolist() for row in problem.durations_s]
    count, current = len(choices), best
    for _ in range(tries if count > 1 else 0):
        if best.listed.end_s <= enough_s:
            break
        columns, order = list(current.columns), list(current.order)
        kind, task, other = drawn.random(), int(drawn.random() * count), int(drawn.random() * count)
        place, direction = int(drawn.random() * count), 1 if drawn.random() < 0.5 else -1
        changed = True
        if kind < 0.35:
            changed = _widen(columns, choices, task, direction)
        elif kind < 0.6:
            changed = task != other and _widen(columns, choices, task, 1) and _widen(columns, choices, other, -1)
        if not changed:
            continue
        if kind >= 0.6 or place % 2:
            order.remove(task)
            order.insert(place, task)
        tried = evaluate(problem, "improved", columns, order, current.listed.end_s)
        if tried is not None:
            current = tried
            best = min(best, tried, key=Candidate.value)
    return best


def _widen(columns: list[int], choices: Sequence[Sequence[int]], task: int, steps: int) -> bool:
    at = choices[task].index(columns[task]) + steps
    if not 0 <= at < len(choices[task]):
        return False
    columns[task] = choices[task][at]
    return True
