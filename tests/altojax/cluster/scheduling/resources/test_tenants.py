"""Tenants share by weight, keep to their quotas, and are told at once what can never run."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import PLAIN, Referee, job, run_to_end, started, submit

from altojax.cluster.scheduling.admission import refusal
from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.scheduling.records import Ended, PlanMade, from_json
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.scheduling.resources.tenants import Tenant
from altojax.cluster.scheduling.scheduler import Scheduler
from altojax.cluster.simulation.arrivals import arrivals
from altojax.cluster.simulation.workload import Workload
from jaxrun.config.config import check_config


def play_backlog(scheduler: Scheduler, until_s: float) -> dict[str, float]:
    """Ends each attempt when it is expected to, and returns the GPU-seconds that tenants got by a time."""
    while True:
        running = [task for task in scheduler.tasks.values() if task.status == "running"]
        first = min(running, key=lambda task: (task.until_s, task.number))
        if first.until_s > until_s:
            break
        scheduler.handle(Ended(first.until_s, first.job.name, first.attempt))
    return {tenant: scheduler.gpu_s(tenant) for tenant in ("x", "y")}


def backlog(tenant: str, count: int, seconds: float, **speeds: float) -> list[Job]:
    speeds = speeds or {"g1": 1.0}
    return [job(f"{tenant}{number}", tenant, samples=seconds, **speeds) for number in range(count)]


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_tenants_with_tasks_waiting_get_gpu_time_by_weight(weight):
    policy = PLAIN.model_copy(update={"tenants": {"x": Tenant(weight=weight)}})
    scheduler = Scheduler(Cluster({"a": 4}), policy)
    submit(scheduler, *backlog("x", 300, 10.0), *backlog("y", 300, 25.0))
    got = play_backlog(scheduler, 1000.0)
    # What a tenant is ahead by is no more than its tasks that run, and one more.
    assert got["x"] / weight == pytest.approx(got["y"], abs=5 * 25.0 * max(1.0, 1.0 / weight))


def test_who_was_idle_has_saved_nothing_up():
    scheduler = Scheduler(Cluster({"a": 2}), PLAIN)
    submit(scheduler, *backlog("x", 400, 10.0))
    play_backlog(scheduler, 1000.0)
    submit(scheduler, *backlog("y", 400, 10.0), at_s=1000.0)
    before = {tenant: scheduler.gpu_s(tenant) for tenant in ("x", "y")}
    after = play_backlog(scheduler, 1400.0)
    assert after["x"] - before["x"] == pytest.approx(400.0, abs=40.0)
    assert after["y"] - before["y"] == pytest.approx(400.0, abs=40.0)


def test_a_short_task_of_another_tenant_need_not_wait_for_a_long_queue():
    scheduler = Scheduler(Cluster({"a": 1}), PLAIN)
    submit(scheduler, *backlog("x", 50, 100.0))
    submit(scheduler, job("y0", "y", samples=1.0), at_s=10.0)
    (running,) = (task.job.name for task in scheduler.tasks.values() if task.status == "running")
    assert started(scheduler.handle(Ended(100.0, running, 1))) == {"y0": {"a": (0,)}}


def test_with_one_tenant_tasks_start_in_the_order_of_the_plan():
    scheduler = Scheduler(Cluster({"a": 1}), PLAIN)
    decisions = submit(scheduler, *(job(f"n{number}", samples=10.0 + number % 7) for number in range(12)))
    order = next(one for one in decisions if isinstance(one, PlanMade)).order
    begun = list(started(decisions))
    while len(begun) < 12:
        task = scheduler.tasks[begun[-1]]
        begun += started(scheduler.handle(Ended(task.until_s, task.job.name, 1)))
    assert tuple(begun) == order


TASK = st.tuples(st.sampled_from("xyz"), st.integers(0, 300), st.sampled_from([(1,), (1, 2), (2, 4), (1, 2, 4), (8,)]))


@settings(max_examples=40, deadline=None)
@given(
    drawn=st.lists(TASK, min_size=3, max_size=25),
    quotas=st.fixed_dictionaries({"x": st.integers(1, 6), "y": st.integers(2, 8)}),
    patience_s=st.sampled_from([None, 0, 100]),
    failing=st.booleans(),
    seed=st.integers(0, 5),
)
def test_quotas_and_gpus_hold_whatever_happens(drawn, quotas, patience_s, failing, seed):
    nodes = {"a": 4, "b": 4}
    tasks = [
        {"name": f"n{number}", "tenant": tenant, "arrival_s": at_s, "samples": 100, "setup_s": 3, "kept": 0.7,
         "speeds": {str(width): width**0.9 for width in widths if width <= quotas.get(tenant, 8)}}
        for number, (tenant, at_s, widths) in enumerate(drawn)
        if min(widths) <= quotas.get(tenant, 8)
    ]  # fmt: skip
    if not tasks:
        return
    failures = {"node_every_s": 300, "repair_s": 40, "task_every_s": 400, "checkpoint_s": 20} if failing else {}
    policy = {
        "tenants": {name: {"quota": quota} for name, quota in quotas.items()}, "patience_s": patience_s,
        "park_s": 2, "resume_s": 2, "move_gain": 1.5, "cp_sat_s": 0, "effort": 8,
    }  # fmt: skip
    config = {"cluster": nodes, "tasks": tasks, "policy": policy, "failures": failures, "seed": seed, "noise": 0.2}
    workload = check_config(Workload, config, "drawn")
    log, simulated = run_to_end(workload, arrivals(workload, Path()), workload.policy)
    Referee(Cluster(nodes), quotas).follow(map(from_json, log))
    over = {run.job for run in simulated.runs.values() if run.outcome == "ended"}
    assert failing or over == {task["name"] for task in tasks}


def test_what_can_never_run_is_refused_in_one_line():
    cluster, policy = Cluster({"a": 4, "b": 4, "c": 2}), Policy(tenants={"x": Tenant(quota=2)})
    fine = [job("a", g1=1.0), job("b", g4=1.0, g3=1.0), job("c", g8=1.0), job("d", "x", g2=1.0, g4=1.0)]
    assert [refusal(one, cluster, policy) for one in fine] == [None] * 4
    wrong = {
        "quota of tenant 'x' is 2": job("a", "x", g4=1.0),
        "can use 6 GPUs": job("a", g6=1.0),
        "can use 5, 16 GPUs": job("a", g5=1.0, g16=1.0),
        "no number of GPUs": Job("a", "t", {}, 1.0),
        "0 samples a second": job("a", g1=0.0),
        "inf samples": job("a", samples=float("inf")),
    }
    for said, one in wrong.items():
        line = refusal(one, cluster, policy)
        assert line is not None and said in line and "\n" not in line
    assert refusal(job("a", g64=1.0), None, policy) is None
    assert refusal(job("a", "x", g64=1.0), None, policy) is not None
