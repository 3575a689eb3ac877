"""The plan: the best of list schedules over many deadlines, improved, and of CP-SAT where that can gain."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from altojax.cluster.scheduling.planning import cpsat
from altojax.cluster.scheduling.planning.energy_bound import dual_allotment, energy_bound
from altojax.cluster.scheduling.planning.list_schedule import RULES
from altojax.cluster.scheduling.planning.local_search import Candidate, evaluate, improve
from altojax.cluster.scheduling.planning.problem import Busy, Problem, problem_of
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.nodes import Cluster, Gpus

CLOSE = 0.001
"""Gap to the energy bound at which no more is looked for."""

_FACTOR = 1.08
_AROUND = (tuple(sign * step for step in range(1, 7) for sign in (1.0, -1.0)), (0.5, -0.5), (0.25, -0.25))
_HALVED = tuple(float(-9 * step) for step in range(1, 8))
"""Deadlines are the bound times powers of the first: whole ones, then halves and quarters around the best. Where the
end is close to the bound anyway, each is half of the one before."""

_EXACT_GAP, _EXACT_TASKS, _EXACT_GPUS = 0.005, 60, 64
"""CP-SAT is asked where the gap is larger than this and the problem is no larger than that."""


@dataclass(frozen=True)
class PlacedTask:
    """Planned start and GPUs of a waiting task.

    Attributes:
        job: The task.
        width: GPUs of its gang.
        start_s: In the queue's time.
        end_s: In the queue's time.
        gpus: Where.
    """

    job: Job
    width: int
    start_s: float
    end_s: float
    gpus: Gpus


@dataclass(frozen=True)
class Schedule:
    """A plan of all tasks that wait.

    Attributes:
        placed: In the order in which they are to be started.
        rule: What made it: a list rule, perhaps improved, or cp-sat.
        fixed: How it is carried out, so that it comes out as planned. False: at any time the first in the order that
            fits what is free starts. True: a task starts once its own GPUs are free and no earlier task of the order
            waits for one of them.
        now_s: When it was made, in the queue's time.
        makespan_s: Seconds from then to the end of the last task, running ones included.
        bound_s: No schedule ends sooner, in seconds from then: the energy bound.
        unplaced: Tasks that the cluster holds on none of their widths.
        note: What kept the plan from being better, in one line, or nothing.
    """

    placed: tuple[PlacedTask, ...]
    rule: str
    fixed: bool
    now_s: float
    makespan_s: float
    bound_s: float
    unplaced: tuple[Job, ...] = ()
    note: str = ""

    @property
    def gap(self) -> float:
        """The makespan's excess over the bound, as a share of it."""
        return self.makespan_s / self.bound_s - 1 if self.bound_s else 0.0


def plan(
    jobs: Sequence[Job],
    cluster: Cluster,
    busy: Sequence[Busy] = (),
    now_s: float = 0.0,
    *,
    effort: int = 20_000,
    exact_s: float = 0.0,
) -> Schedule:
    """Plans tasks that wait so that the last of all ends soonest. The same input gives the same plan everywhere.

    Args:
        jobs: Tasks that wait, in any order that matters between equals.
        cluster: Where.
        busy: What runs, and until when.
        now_s: When the first can start.
        effort: Tasks that may be placed while looking for a good list schedule; more than 16,000 a second. However
            few, the rules are tried for one deadline.
        exact_s: Deterministic seconds that CP-SAT may take where it is worth asking; 0 is never. They count its work;
            time is three or four times as long.
    """
    fits = [any(cluster.holds(width) for width in job.speeds) for job in jobs]
    fitting = [job for job, fit in zip(jobs, fits, strict=True) if fit]
    unplaced = tuple(job for job, fit in zip(jobs, fits, strict=True) if not fit)
    problem = problem_of(fitting, cluster, busy, now_s)
    bound_s = energy_bound(problem)
    best, note = best_list(problem, bound_s, effort), ""
    small = len(fitting) <= _EXACT_TASKS and cluster.gpus <= _EXACT_GPUS
    if exact_s > 0 and fitting and small and best.listed.end_s > bound_s * (1 + _EXACT_GAP):
        if cpsat.installed():
            best = cpsat.solve(problem, best, bound_s, exact_s, CLOSE) or best
        else:
            note = "CP-SAT was not asked: OR-Tools is not installed, pip install 'altojax[plan]'"
    placed = tuple(
        PlacedTask(
            fitting[task],
            int(problem.widths[best.columns[task]]),
            now_s + best.listed.starts_s[task],
            now_s + best.listed.ends_s[task],
            best.listed.gpus[task],
        )
        for task in best.order
    )
    fixed = best.rule == cpsat.RULE
    return Schedule(placed, best.rule, fixed, now_s, best.listed.end_s, bound_s, unplaced, note)


def best_list(problem: Problem, bound_s: float, effort: int) -> Candidate:
    """Returns the best list schedule that was found: all rules for each deadline, then improved.

    One that ends before another is better, but ends that are close to the bound count as equal: then it is the one
    whose tasks end sooner on average. So tasks take more GPUs than the end of all asks for where these would be idle,
    for instance while one long task runs.

    Args:
        problem: What is planned; the cluster holds every task.
        bound_s: Its energy bound.
        effort: Tasks that may be placed, see `plan`.
    """
    tries, enough_s = effort // max(1, len(problem.durations_s)), bound_s * (1 + CLOSE)
    seen: set[bytes] = set()
    best = _try_deadline(problem, bound_s, seen, None, enough_s)
    assert best is not None
    centre, left = 0.0, tries - len(RULES)
    for steps in (_HALVED,) if best.listed.end_s <= enough_s else _AROUND:
        start = centre
        for power in (start + step for step in steps):
            if left < len(RULES):
                break
            tried = _try_deadline(problem, bound_s * _FACTOR**power, seen, best, enough_s)
            if tried is not None:
                left -= len(RULES)
                if tried is not best:
                    best, centre = tried, power
    return improve(problem, best, left, enough_s)


def _try_deadline(
    problem: Problem, deadline_s: float, seen: set[bytes], best: Candidate | None, enough_s: float
) -> Candidate | None:
    """The best of all rules for a deadline and of `best`, or None where its widths were tried for another deadline."""
    columns = dual_allotment(problem, np.maximum(deadline_s, problem.least_s))
    assert columns is not None  # no deadline is shorter than a task's shortest duration
    if columns.tobytes() in seen:
        return None
    seen.add(columns.tobytes())
    durations_s = problem.durations_s[np.arange(len(columns)), columns]
    for name, rule in RULES.items():
        tried = evaluate(problem, name, columns.tolist(), rule(problem.widths[columns], durations_s).tolist())
        if tried is not None and (best is None or tried.value(enough_s) < best.value(enough_s)):
            best = tried
    return best
