"""CP-SAT improves a list schedule: never to a worse one, never to one that cannot run, always to the same."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from moldable import check_places, queues

from altojax.cluster.scheduling.planning import cpsat
from altojax.cluster.scheduling.planning.energy_bound import energy_bound
from altojax.cluster.scheduling.planning.local_search import evaluate
from altojax.cluster.scheduling.planning.portfolio import PlacedTask, plan
from altojax.cluster.scheduling.planning.problem import Busy, problem_of
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.nodes import Cluster, Free


def narrowest(jobs, cluster, busy=()):
    """The problem, and every task on its narrowest width in the order given: mostly a poor schedule."""
    problem = problem_of(jobs, cluster, busy)
    columns = [int(row.argmax()) for row in problem.durations_s < float("inf")]
    return problem, evaluate(problem, "narrowest", columns, range(len(jobs)))


def placed(jobs, problem, found):
    widths = problem.widths[found.columns].tolist()
    rows = zip(jobs, widths, found.listed.starts_s, found.listed.ends_s, found.listed.gpus, strict=True)
    return [PlacedTask(*row) for row in rows]


def follow(made, busy):
    """Starts as they come out where a task starts once its own GPUs are free and no earlier one waits for them."""
    free_s = {(name, gpu): one.until_s for one in busy for name, indices in one.gpus.items() for gpu in indices}
    starts_s = []
    for one in made:
        own = [(name, gpu) for name, indices in one.gpus.items() for gpu in indices]
        starts_s.append(max(free_s.get(gpu, 0.0) for gpu in own))
        free_s.update(dict.fromkeys(own, starts_s[-1] + one.job.duration_s(one.width)))
    return starts_s


@settings(max_examples=12, deadline=None)
@given(queues(most=5))
def test_what_it_finds_ends_sooner_and_can_run(queue):
    jobs, cluster, busy = queue
    if not jobs:
        return
    problem, begin = narrowest(*queue)
    found = cpsat.solve(problem, begin, energy_bound(problem), 0.02, 0.001)
    if found is None:
        return
    assert found.value() < begin.value()
    assert sorted(found.order) == list(range(len(jobs)))
    made = placed(jobs, problem, found)
    check_places(made, cluster, busy)
    assert max([*(one.end_s for one in made), *(one.until_s for one in problem.busy)]) == found.listed.end_s
    assert found.listed.end_s >= energy_bound(problem) * (1 - 1e-9)
    in_order = [made[task] for task in found.order]
    assert follow(in_order, problem.busy) == [one.start_s for one in in_order]


def test_it_finds_the_best_where_longest_first_does_not():
    jobs = [Job(f"t{number}", "us", {1: 1.0}, length) for number, length in enumerate((3.0, 3.0, 2.0, 2.0, 2.0))]
    problem, longest_first = narrowest(jobs, Cluster({"a": 2}))
    assert longest_first.listed.end_s == 7.0
    assert cpsat.solve(problem, longest_first, 6.0, 0.1, 0.001).listed.end_s == 6.0


def test_a_gang_over_nodes_takes_whole_ones_beside_what_runs():
    jobs = [Job("wide", "us", {2: 1.0, 8: 3.2}, 40.0), Job("small", "us", {1: 1.0}, 12.0)]
    cluster, busy = Cluster({"a": 4, "b": 4, "c": 4}), [Busy({"b": (1,)}, 6.0)]
    problem, begin = narrowest(jobs, cluster, busy)
    found = cpsat.solve(problem, begin, energy_bound(problem), 0.1, 0.001)
    wide, small = placed(jobs, problem, found)
    assert begin.listed.end_s == 40.0
    assert wide.width == 8 and set(wide.gpus) == {"a", "c"} and wide.end_s == found.listed.end_s == 12.5
    assert set(small.gpus) == {"b"} and small.start_s == 0.0
    Free(cluster, [wide.gpus, small.gpus, busy[0].gpus])


@pytest.mark.parametrize("seed", (3, 6))
def test_forty_tasks_on_four_nodes_end_within_five_per_cent_of_the_bound(script, seed):
    bench = script("bench_placement")
    jobs = bench.draw(40, seed)
    listed, made = plan(jobs, bench.FOUR_NODES), plan(jobs, bench.FOUR_NODES, exact_s=0.4)
    assert made.rule == "cp-sat" and made.fixed
    assert 0 <= made.gap < min(0.05, listed.gap)
    check_places(made.placed, bench.FOUR_NODES)
    assert follow(made.placed, []) == [one.start_s for one in made.placed]


def test_it_is_not_asked_where_it_cannot_gain_or_would_take_long(monkeypatch):
    monkeypatch.setattr(cpsat, "solve", None)
    near, cluster = [Job("a", "us", {1: 1.0}, 5.0)], Cluster({"a": 1})
    assert plan(near, cluster, exact_s=1.0).gap == 0.0
    many = [Job(f"t{number}", "us", {1: 1.0}, 5.0) for number in range(61)]
    assert plan(many, Cluster({"a": 8}), exact_s=1.0).gap > 0.005


def test_without_or_tools_the_list_schedule_is_taken_and_the_plan_says_so(monkeypatch):
    jobs, cluster = [Job(f"t{number}", "us", {1: 1.0}, 5.0) for number in range(3)], Cluster({"a": 2})
    monkeypatch.setattr(cpsat, "find_spec", lambda name: None)
    made = plan(jobs, cluster, exact_s=1.0)
    assert made.placed == plan(jobs, cluster).placed and not made.fixed
    assert "altojax[plan]" in made.note and not plan(jobs, cluster).note


def test_another_process_finds_the_same():
    program = (
        "import json, sys; sys.path.insert(0, 'scripts/plan'); import bench_placement as bench\n"
        "made = bench.plan(bench.draw(20, 0), bench.ONE_NODE, effort=0, exact_s=0.05)\n"
        "print(json.dumps([made.rule, [[one.job.name, one.start_s, dict(one.gpus)] for one in made.placed]]))"
    )
    said = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100).stdout
        for _ in range(2)
    ]
    assert json.loads(said[0])[0] == "cp-sat" and said[0] == said[1]
