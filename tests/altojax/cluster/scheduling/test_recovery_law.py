"""Kill the orchestrator at any event: the decision log after recovery is the same, to the byte."""

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from schedules import Referee, recover, run_to_end

from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.scheduling.records import UserAsked, from_json, to_json
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.simulation.arrivals import arrivals
from altojax.cluster.simulation.workload import Workload
from jaxrun.config.config import check_config

FAMILY = {"key": "base", "trials": 2, "batch": 4, "slots": {"1": 8, "2": 16}, "step_s": {"1": 1.0, "2": 0.6},
          "sample_s": {"1": 0.01, "2": 0.01}}  # fmt: skip
WORKLOAD = {
    "cluster": {"a": 4, "b": 4},
    "seed": 3,
    "known_after": 0.3,
    "noise": 0.2,
    "failures": {"node_every_s": 4000, "repair_s": 300, "task_every_s": 3000, "checkpoint_s": 100},
    "policy": {
        "tenants": {"x": {"weight": 2.0}, "y": {"quota": 4}},
        "patience_s": 300, "retries": 0, "park_s": 10, "resume_s": 10, "effort": 40, "cp_sat_s": 0,
    },
    "tasks": [
        {"name": "kin", "tenant": "x", "arrival_s": 120, "speeds": {"1": 3.0, "2": 5.0}, "samples": 2000,
         "family": FAMILY, "count": 4},
        {"name": "wide", "tenant": "x", "arrival_s": 50, "speeds": {"4": 4.0, "8": 7.0}, "samples": 5000, "kept": 0.5,
         "setup_s": 20, "count": 2},
        {"name": "any", "tenant": "y", "arrival_s": 100, "every_s": 130, "speeds": {"1": 1.0, "2": 1.9, "4": 3.5},
         "samples": 1500, "kept": 0.6, "setup_s": 5, "count": 8},
        {"name": "late", "tenant": "y", "arrival_s": 2900, "speeds": {"1": 1.0, "2": 1.9, "4": 3.7}, "samples": 4000,
         "setup_s": 5, "count": 2},
    ],
}  # fmt: skip
ASKED = (
    UserAsked(200.0, "any-1", "pause"),
    UserAsked(300.0, "kin-2", "cancel"),
    UserAsked(400.0, "any-3", "pause"),
    UserAsked(900.0, "any-1", "resume"),
    UserAsked(1000.0, "any-3", "resume"),
    UserAsked(500.0, "wide-1", "cancel"),
    UserAsked(1100.0, "any-4", "cancel"),
    UserAsked(1150.0, "any-4", "pause"),
)


SEEDS = range(8)


@cache
def recorded_run(seed: int):
    workload = check_config(Workload, {**WORKLOAD, "seed": seed}, "test")
    tasks = arrivals(workload, Path())
    return workload, tasks, *run_to_end(workload, tasks, workload.policy, ASKED)


@pytest.fixture(params=SEEDS)
def recorded(request):
    return recorded_run(request.param)


def test_the_recorded_runs_have_everything_that_can_happen():
    records = [from_json(line) for seed in SEEDS for line in recorded_run(seed)[2]]
    assert {record.kind for record in records} == {
        "submitted", "started", "progressed", "ended", "halted", "failed", "asked", "node",
        "plan", "merge", "hold", "start", "stop", "give_up",
    }  # fmt: skip
    assert {record.why for record in records if record.kind == "stop"} == {"paused", "cancelled", "moved"}


def test_killed_at_every_event_it_decides_the_same(recorded):
    workload, tasks, log, simulated = recorded
    again, other = run_to_end(workload, tasks, workload.policy, ASKED, killed=True)
    assert again == log
    assert other.ends_s == simulated.ends_s


def test_no_gpu_is_given_twice_and_nothing_runs_to_its_end_twice(recorded):
    workload, _, log, simulated = recorded
    Referee(Cluster(dict(workload.cluster)), {"y": 4}).follow(map(from_json, log))
    ends = Counter(run.job for run in simulated.runs.values() if run.outcome == "ended")
    assert max(ends.values()) == 1


def test_every_task_comes_to_an_end_that_its_log_tells(recorded):
    workload, tasks, log, simulated = recorded
    scheduler = recover(log, Cluster(dict(workload.cluster)), workload.policy)
    statuses = {name: task.status for name, task in scheduler.tasks.items()}
    assert set(statuses.values()) <= {"ended", "failed", "cancelled"}
    assert {one.job.name for one in tasks} <= set(statuses)
    assert set(simulated.ends_s) == {one.job.name for one in tasks if statuses[one.job.name] == "ended"}
    assert not scheduler.state.occupancy.running and not scheduler.state.occupancy.holds
    assert {scheduler.state.shares.held(tenant) for tenant in ("x", "y")} == {0}


def test_a_log_reads_back_as_it_was_written(recorded):
    _, _, log, _ = recorded
    assert [to_json(from_json(line)) for line in log] == log


def test_another_policy_takes_over_a_log(recorded):
    """An operator may change weights and quotas between two starts."""
    workload, _, log, _ = recorded
    scheduler = recover(log[: len(log) // 2], Cluster(dict(workload.cluster)), Policy(effort=40, cp_sat_s=0.0))
    scheduler.decide()
    assert scheduler.gap().share >= 0
