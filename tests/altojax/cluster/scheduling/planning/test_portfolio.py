"""The plan: no worse than its list schedules, the same everywhere, near the bound, and carried out as planned."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moldable import check_places, queues, quick

from altojax.cluster.scheduling.planning.energy_bound import dual_allotment, energy_bound
from altojax.cluster.scheduling.planning.list_schedule import RULES, list_schedule
from altojax.cluster.scheduling.planning.local_search import evaluate
from altojax.cluster.scheduling.planning.portfolio import CLOSE, plan
from altojax.cluster.scheduling.planning.problem import Busy, problem_of
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.nodes import Cluster

CHEAP = 600


@quick
@given(queues(), st.sampled_from([0.0, 1000.0]))
def test_every_task_is_placed_once_and_no_plan_beats_the_bound(queue, now_s):
    jobs, cluster, busy = queue
    moved = [type(one)(one.gpus, one.until_s + now_s) for one in busy]
    made = plan(jobs, cluster, moved, now_s, effort=CHEAP)
    assert sorted(one.job.name for one in made.placed) == sorted(job.name for job in jobs)
    check_places(made.placed, cluster, moved)
    assert all(now_s <= one.start_s for one in made.placed)
    assert all(one.end_s - one.start_s == pytest.approx(one.job.duration_s(one.width)) for one in made.placed)
    ends_s = [*(one.end_s for one in made.placed), *(one.until_s for one in moved), now_s]
    assert made.makespan_s == pytest.approx(max(ends_s) - now_s, rel=1e-9, abs=1e-9)
    assert made.makespan_s >= made.bound_s * (1 - 1e-9)


@quick
@given(queues())
def test_no_list_rule_for_the_bound_as_deadline_is_better(queue):
    problem = problem_of(*queue)
    made = plan(*queue, effort=CHEAP)
    columns = dual_allotment(problem, max(energy_bound(problem), problem.least_s.max(initial=0.0)))
    for rule in RULES.values():
        order = rule(problem.widths[columns], problem.durations_s[range(len(columns)), columns])
        ends_s = evaluate(problem, "", columns.tolist(), order.tolist()).listed.end_s
        assert made.makespan_s <= max(ends_s, made.bound_s * (1 + CLOSE))


@quick
@given(queues())
def test_starting_what_fits_in_its_order_carries_it_out(queue):
    jobs, cluster, busy = queue
    made = plan(*queue, effort=CHEAP)
    assert not made.fixed
    widths = [one.width for one in made.placed]
    durations_s = [one.job.duration_s(one.width) for one in made.placed]
    again = list_schedule(range(len(jobs)), widths, durations_s, cluster, busy)
    assert again.starts_s == [one.start_s for one in made.placed]
    assert again.gpus == [one.gpus for one in made.placed]


@pytest.mark.parametrize("seed", range(6))
def test_forty_tasks_on_eight_gpus_end_within_two_per_cent_of_the_bound(script, seed):
    bench = script("bench_placement")
    made = plan(bench.draw(40, seed), bench.ONE_NODE)
    assert 0 <= made.gap < 0.02


def test_a_task_that_fits_nowhere_is_named_and_the_others_are_planned():
    big, small = Job("big", "us", {16: 1.0}, 5.0), Job("small", "us", {1: 1.0, 16: 9.0}, 5.0)
    made = plan([big, small], Cluster({"a": 8}))
    assert made.unplaced == (big,) and [one.job for one in made.placed] == [small]
    nowhere = plan([small], Cluster({}))
    assert nowhere.unplaced == (small,) and nowhere.makespan_s == nowhere.gap == 0.0


def test_while_a_long_task_runs_anyway_short_ones_go_first():
    jobs = [Job(f"t{length}", "us", {1: 1.0}, float(length)) for length in (30, 10, 20)]
    made = plan(jobs, Cluster({"a": 2}), [Busy({"a": (0,)}, 100.0)])
    assert made.makespan_s == made.bound_s == 100.0
    assert [one.job.name for one in made.placed] == ["t10", "t20", "t30"]


def test_while_a_long_task_runs_anyway_others_take_gpus_that_would_be_idle():
    jobs, cluster = [Job("a", "us", {1: 1.0, 2: 1.5, 4: 2.0}, 60.0)], Cluster({"a": 5})
    assert plan(jobs, cluster, [Busy({"a": (0,)}, 100.0)]).placed[0].width == 4
    assert [one.end_s for one in plan(jobs * 2, cluster, [Busy({"a": (0,)}, 100.0)]).placed] == [40.0, 40.0]
    assert [one.width for one in plan(jobs * 8, cluster, [Busy({"a": (0,)}, 100.0)]).placed] == [1] * 8


def test_more_gpus_that_are_slower_are_not_taken():
    jobs = [Job("a", "us", {1: 1.0, 2: 0.5, 4: 3.0}, 12.0)]
    assert plan(jobs, Cluster({"a": 2})).placed[0].width == 1
    assert plan(jobs, Cluster({"a": 4})).placed[0].width == 4


def test_another_process_makes_the_same_plan(script):
    program = (
        "import json, sys; sys.path.insert(0, 'scripts/plan'); import bench_placement as bench\n"
        "made = bench.plan(bench.draw(30, 3), bench.FOUR_NODES, effort=6000)\n"
        "print(json.dumps([[one.job.name, one.start_s, dict(one.gpus)] for one in made.placed]))"
    )
    bench = script("bench_placement")
    made = plan(bench.draw(30, 3), bench.FOUR_NODES, effort=6000)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    here = [[one.job.name, one.start_s, dict(one.gpus)] for one in made.placed]
    assert json.loads(done.stdout) == json.loads(json.dumps(here))
