"""The energy bound: a lower bound on every schedule, and the GPU counts that a deadline asks for.

Within a deadline a task costs no less than its cheapest width that meets it, and all together have GPUs x deadline to
spend. (The dual approximation of moldable scheduling: Mounié, Rapine and Trystram, "A 3/2-approximation algorithm for
scheduling independent monotonic malleable tasks", SIAM J. Comput. 2007.)
"""

import numpy as np
from jaxtyping import Float, Int

from altojax.cluster.scheduling.planning.problem import Problem


def energy_bound(problem: Problem) -> float:
    """Returns the seconds before which no schedule ends: the energy bound.

    The smallest T within which every task can end on some width and what runs ends, and the least GPU time that tasks
    can cost within T, with what runs still takes, is no more than GPUs x T. Tasks that the cluster cannot hold are left
    out.
    """
    fits = np.isfinite(problem.least_s)
    durations_s, works_s = problem.durations_s[fits], problem.works_s[fits]
    start_s = max([0.0, *(one.until_s for one in problem.busy), *problem.least_s[fits].tolist()])
    running_s = sum(one.until_s * sum(map(len, one.gpus.values())) for one in problem.busy)
    if not len(durations_s):
        return max(start_s, running_s / problem.cluster.gpus) if running_s else start_s
    # The least work falls by a step wherever the deadline reaches a duration that is cheaper than all shorter ones.
    order = np.argsort(durations_s, axis=1, kind="stable")
    times_s = np.take_along_axis(durations_s, order, axis=1)
    least_s = np.minimum.accumulate(np.take_along_axis(works_s, order, axis=1), axis=1)
    already = (times_s <= start_s).sum(axis=1) - 1
    first_s = running_s + float(least_s[np.arange(len(already)), already].sum())
    later = (times_s[:, 1:] > start_s) & np.isfinite(times_s[:, 1:])
    steps_s, saved_s = times_s[:, 1:][later], (least_s[:, :-1] - least_s[:, 1:])[later]
    sort = np.argsort(steps_s, kind="stable")
    begins_s = np.concatenate([[start_s], steps_s[sort]])
    total_s = first_s - np.concatenate([[0.0], np.cumsum(saved_s[sort])])
    # Between two steps the least work is constant: the bound lies in the first stretch that is long enough for it.
    ends_s = np.append(begins_s[1:], np.inf)
    stretch = int(np.argmax(total_s <= problem.cluster.gpus * ends_s))
    return float(max(begins_s[stretch], total_s[stretch] / problem.cluster.gpus))


def dual_allotment(
    problem: Problem, deadline_s: float | Float[np.ndarray, " tasks"]
) -> Int[np.ndarray, " tasks"] | None:
    """Returns the column on which each task costs least and meets the deadline, or None where one cannot meet it.

    Of equal costs, the narrower width.

    Args:
        problem: What is planned.
        deadline_s: Of all tasks, or of each.
    """
    if not (problem.least_s <= deadline_s).all():
        return None
    if not len(problem.durations_s):
        return np.zeros(0, dtype=np.int64)
    meets = problem.durations_s <= np.reshape(deadline_s, (-1, 1))
    return np.where(meets, problem.works_s, np.inf).argmin(axis=1)
