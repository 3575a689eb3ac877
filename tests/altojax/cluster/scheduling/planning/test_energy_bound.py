"""The energy bound is a bound, no smaller than it should be, and the dual allotment meets its deadline."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moldable import queues, quick, speeds

from altojax.cluster.scheduling.planning.energy_bound import dual_allotment, energy_bound
from altojax.cluster.scheduling.planning.problem import Busy, problem_of
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.nodes import Cluster


def least_works(jobs, cluster, deadline_s):
    return [
        min(
            (
                job.work_s(width)
                for width in job.speeds
                if cluster.holds(width) and job.duration_s(width) <= deadline_s * (1 + 1e-12)
            ),
            default=float("inf"),
        )
        for job in jobs
    ]


def by_trying(jobs, cluster, busy):
    """The smallest T of the definition: found by bisection, which knows nothing of steps."""
    running_s = sum(one.until_s * sum(map(len, one.gpus.values())) for one in busy)
    low, high = max([0.0, *(one.until_s for one in busy)]), 1e5
    if sum(least_works(jobs, cluster, low)) + running_s <= cluster.gpus * low:
        return low
    for _ in range(200):
        middle = (low + high) / 2
        enough = sum(least_works(jobs, cluster, middle)) + running_s <= cluster.gpus * middle
        low, high = (low, middle) if enough else (middle, high)
    return high


@quick
@given(queues())
def test_it_is_the_smallest_time_that_has_enough_gpu_seconds(queue):
    assert energy_bound(problem_of(*queue)) == pytest.approx(by_trying(*queue), rel=1e-9)


@quick
@given(queues(), speeds)
def test_another_task_never_lowers_it(queue, more):
    jobs, cluster, busy = queue
    added = [*jobs, Job("more", "us", more, 50.0)]
    assert energy_bound(problem_of(added, cluster, busy)) >= energy_bound(problem_of(*queue)) * (1 - 1e-12)


@quick
@given(queues(most=5), st.floats(1.0, 200.0))
def test_an_allotment_meets_its_deadline_at_the_least_cost(queue, deadline_s):
    jobs, cluster, busy = queue
    problem = problem_of(jobs, cluster, busy)
    columns = dual_allotment(problem, deadline_s)
    works_s = least_works(jobs, cluster, deadline_s / (1 + 1e-12))
    assert (columns is None) == (max(works_s, default=0.0) == float("inf"))
    if columns is not None:
        widths = problem.widths[columns].tolist()
        assert all(job.duration_s(width) <= deadline_s for job, width in zip(jobs, widths, strict=True))
        assert [job.work_s(width) for job, width in zip(jobs, widths, strict=True)] == works_s


@quick
@given(queues())
def test_a_width_that_is_worse_in_both_is_never_used(queue):
    problem = problem_of(*queue)
    for durations_s, works_s in zip(problem.durations_s, problem.works_s, strict=True):
        used = np.flatnonzero(np.isfinite(durations_s))
        for one, other in itertools.permutations(used, 2):
            assert durations_s[one] < durations_s[other] or works_s[one] < works_s[other]
        assert len(used)


def test_what_runs_cannot_move_and_costs_what_is_left_of_it():
    jobs, cluster = [Job("a", "us", {1: 1.0}, 10.0)], Cluster({"a": 2})
    assert energy_bound(problem_of(jobs, cluster)) == 10.0
    busy = [Busy({"a": (0, 1)}, 107.0)]
    assert energy_bound(problem_of(jobs, cluster, busy, now_s=100.0)) == (2 * 7 + 10) / 2
    assert energy_bound(problem_of(jobs, cluster, [Busy({"a": (0,)}, 130.0)], now_s=100.0)) == 30.0
    assert energy_bound(problem_of(jobs, cluster, busy, now_s=200.0)) == 10.0
    assert energy_bound(problem_of(jobs, cluster, [Busy({"gone": (0,)}, 999.0)])) == 10.0
    assert energy_bound(problem_of([], cluster)) == 0.0


def test_it_is_where_cheaper_widths_become_allowed_if_dearer_ones_would_take_longer():
    jobs = [Job(name, "us", {1: 1.0, 2: 10 / 5.125}, 10.0) for name in "ab"]
    assert energy_bound(problem_of(jobs, Cluster({"a": 2}))) == 10.0


def test_a_tight_deadline_buys_speed_with_gpu_seconds():
    jobs = [Job("a", "us", {1: 1.0, 2: 1.5, 4: 1.2}, 30.0)]
    problem = problem_of(jobs, Cluster({"a": 4}))
    assert [problem.widths[dual_allotment(problem, t)[0]] for t in (30.0, 29.0, 20.0)] == [1, 2, 2]
    assert dual_allotment(problem, 19.0) is None
