"""The plan: the best of list schedules over many deadlines, improved, and of CP-SAT where that can gain."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from altojax.placement import cpsat
from altojax.placement.bound import dual_allotment, energy_bound
from altojax.placement.improve import Candidate, evaluate, improve
from altojax.placement.job import Job
from altojax.placement.listing import RULES
from altojax.placement.nodes import Cluster, Gpus
from altojax.placement.problem import Busy, Problem, problem_of

CLOSE = 0.001
"""Gap to the energy bound at which no more is looked for."""

_FACTOR = 1.08
_AROUND = ((0.0, *(sign * step for step in range(1, 7) for sign in (1.0, -1.0))), (0.5, -0.5), (0.25, -0.25))
"""Deadlines are the bound times powers of the first: whole ones, then halves and quarters around the best."""


_EXACT_GAP, _EXACT_TASKS, _EXACT_GPUS = 0.005, 60, 64
"""CP-SAT is asked where the gap is larger than this and the problem is no larger than that."""


@dataclass(frozen=True)
class Placed:
    """When and where a waiting task is to run.

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

    placed: tuple[Placed, ...]
    rule: str
    fixed: bool
    now_s: float
    makespan_s: float
    bound_s: float
    unplaced: tuple[Job, ...] = ()
    note: str = ""

    @property
    def gap(self) -> float:
        """How far the makespan is above the bound, as a share of it."""
        return self.makespan_s / self.bound_s - 1 if self.bound_s else 0.0

    @property
    def mean_completion_s(self) -> float:
        """Seconds from `now_s` to the end of a placed task, on average."""
        return sum(one.end_s - self.now_s for one in self.placed) / len(self.placed) if self.placed else 0.0


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
        Placed(
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

    Args:
        problem: What is planned; the cluster holds every task.
        bound_s: Its energy bound.
        effort: Tasks that may be placed, see `plan`.
    """
    tasks = max(1, len(problem.durations_s))
    tries, enough_s = effort // tasks, bound_s * (1 + CLOSE)
    best, centre, seen = None, 0.0, set()
    for powers in _AROUND:
        start = centre
        for power in (start + step for step in powers):
            columns = dual_allotment(problem, max(bound_s * _FACTOR**power, problem.least_s.max(initial=0.0)))
            assert columns is not None  # every task meets its own shortest duration
            if columns.tobytes() in seen:
                continue
            seen.add(columns.tobytes())
            for name, rule in RULES.items():
                order = rule(problem.widths[columns], problem.durations_s[np.arange(len(columns)), columns])
                tried = evaluate(problem, name, columns.tolist(), order.tolist())
                if tried is not None and (best is None or tried.key < best.key):
                    best, centre = tried, power
            tries -= len(RULES)
            assert best is not None
            if best.listed.end_s <= enough_s or tries < len(RULES):
                return improve(problem, best, tries, enough_s)
    assert best is not None
    return improve(problem, best, tries, enough_s)
