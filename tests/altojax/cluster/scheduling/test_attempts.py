"""Attempts fail, are paused, cancelled and merged: what becomes of their tasks, in every state."""

import pytest
from schedules import PLAIN, job, started, submit

from altojax.cluster.scheduling.records import (
    Ended,
    Failed,
    GiveUp,
    Halted,
    Merge,
    NodeChanged,
    PlanMade,
    Progressed,
    Started,
    Stop,
    Submitted,
    UserAsked,
)
from altojax.cluster.scheduling.resources.job import Job, TaskFamily
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.scheduling.scheduler import Scheduler

ONE = Cluster({"a": 1})


def running(policy=PLAIN, cluster: Cluster = ONE) -> Scheduler:
    """A scheduler with a task named n that runs its first attempt, and one named m that waits."""
    scheduler = Scheduler(cluster, policy)
    submit(scheduler, job("n"))
    submit(scheduler, job("m"), at_s=1.0)
    return scheduler


def status(scheduler: Scheduler, name: str = "n") -> str:
    return scheduler.tasks[name].status


def test_a_task_that_fails_is_tried_again_until_its_retries_are_used_up():
    scheduler = Scheduler(ONE, PLAIN.model_copy(update={"retries": 2}))
    submit(scheduler, job("n"))
    for attempt in (1, 2):
        decisions = scheduler.handle(Failed(10.0 * attempt, "n", attempt, "out of memory", 90.0))
        assert set(started(decisions)) == {"n"} and scheduler.tasks["n"].attempt == attempt + 1
    assert scheduler.handle(Failed(30.0, "n", 3, "out of memory", 90.0)) == [
        GiveUp(30.0, "n", "failed 3 times, the last time: out of memory")
    ]
    assert status(scheduler) == "failed" and "out of memory" in scheduler.tasks["n"].reason


def test_nodes_that_die_have_a_bound_of_their_own():
    scheduler = Scheduler(ONE, PLAIN.model_copy(update={"retries": 0, "node_retries": 3}))
    submit(scheduler, job("n"))
    for attempt in (1, 2, 3):
        assert started(scheduler.handle(Failed(10.0 * attempt, "n", attempt, "node lost", 90.0, "node")))
    assert [one.kind for one in scheduler.handle(Failed(40.0, "n", 4, "node lost", 90.0, "node"))] == ["give_up"]


def test_a_node_that_goes_takes_its_gangs_and_they_start_elsewhere():
    scheduler = Scheduler(Cluster({"a": 2, "b": 2}), PLAIN)
    first = started(submit(scheduler, job("n", g2=1.0)))["n"]
    (node,) = first
    decisions = scheduler.handle(NodeChanged(5.0, node, 0), Failed(5.0, "n", 1, "node lost", 95.0, "node"))
    (second,) = started(decisions)["n"]
    assert second != node
    decisions = scheduler.handle(NodeChanged(6.0, second, 0), Failed(6.0, "n", 2, "node lost", 95.0, "node"))
    assert not started(decisions) and status(scheduler) == "waiting" and "n" not in scheduler.forecast()
    assert started(scheduler.handle(NodeChanged(9.0, node, 2))) == {"n": {node: (0, 1)}}


def test_gpus_of_a_node_that_comes_back_wait_for_the_gang_that_was_on_it():
    scheduler = running(cluster=Cluster({"a": 1}))
    assert not started(scheduler.handle(NodeChanged(5.0, "a", 0)))
    assert not started(scheduler.handle(NodeChanged(6.0, "a", 1)))
    assert len(started(scheduler.handle(Failed(7.0, "n", 1, "node lost", 95.0, "node")))) == 1


def test_late_reports_of_older_attempts_change_nothing():
    scheduler = running()
    scheduler.handle(Failed(10.0, "n", 1, "killed", 90.0, "node"))
    newest = next(name for name, task in scheduler.tasks.items() if task.status == "running")
    scheduler.handle(Failed(11.0, "n", scheduler.tasks["n"].attempt, "killed", 90.0, "node"))
    before = {name: (task.status, task.attempt, task.job.samples) for name, task in scheduler.tasks.items()}
    for late in (Ended, Halted, Failed, Started):
        rest = {Ended: (), Halted: (5.0,), Failed: ("late", 5.0), Started: ()}[late]
        assert scheduler.handle(late(12.0, newest, scheduler.tasks[newest].attempt - 1, *rest)) == []
    assert {name: (task.status, task.attempt, task.job.samples) for name, task in scheduler.tasks.items()} == before


def test_what_names_no_task_or_a_known_one_again_changes_nothing():
    scheduler = running()
    for event in (Ended(2.0, "?", 1), UserAsked(2.0, "?", "cancel"), Submitted(2.0, job("n", samples=7.0))):
        assert scheduler.handle(event) == []
    assert scheduler.tasks["n"].job.samples == 100.0


def test_pausing_and_resuming_in_every_state():
    scheduler = running()
    assert scheduler.handle(UserAsked(2.0, "m", "pause")) == [] and status(scheduler, "m") == "paused"
    assert scheduler.handle(UserAsked(3.0, "n", "pause")) == [Stop(3.0, "n", 1, "paused")]
    assert status(scheduler) == "stopping"
    assert scheduler.handle(UserAsked(3.5, "n", "pause")) == []  # told once
    assert not started(scheduler.handle(Halted(4.0, "n", 1, 97.0))) and status(scheduler) == "paused"
    assert set(started(scheduler.handle(UserAsked(5.0, "m", "resume")))) == {"m"}
    assert not started(scheduler.handle(UserAsked(6.0, "n", "resume"))) and status(scheduler) == "waiting"
    decisions = scheduler.handle(Ended(7.0, "m", 1))
    assert set(started(decisions)) == {"n"} and scheduler.tasks["n"].attempt == 2
    assert scheduler.tasks["n"].until_s == 7.0 + 97.0


def test_resuming_before_it_has_stopped_starts_it_again():
    scheduler = running()
    scheduler.handle(UserAsked(3.0, "n", "pause"))
    scheduler.handle(UserAsked(3.5, "n", "resume"))
    scheduler.handle(Halted(4.0, "n", 1, 97.0))
    assert status(scheduler) in ("running", "waiting")


@pytest.mark.parametrize("report", [Halted(4.0, "n", 1, 97.0), Failed(4.0, "n", 1, "killed", 99.0)])
def test_a_cancelled_task_is_gone_once_it_has_stopped(report):
    scheduler = running()
    assert scheduler.handle(UserAsked(3.0, "n", "cancel")) == [Stop(3.0, "n", 1, "cancelled")]
    assert set(started(scheduler.handle(report))) == {"m"}  # not before its GPU is free
    assert status(scheduler) == "cancelled" and scheduler.tasks["n"].ended_s == 4.0
    assert scheduler.handle(UserAsked(5.0, "n", "resume")) == [] and status(scheduler) == "cancelled"


def test_a_task_that_ends_before_its_stop_has_ended():
    scheduler = running()
    scheduler.handle(UserAsked(3.0, "n", "cancel"))
    scheduler.handle(Ended(4.0, "n", 1))
    assert status(scheduler) == "ended"


def test_cancelling_what_waits_or_rests_needs_no_decision():
    scheduler = running()
    assert scheduler.handle(UserAsked(2.0, "m", "cancel")) == [] and status(scheduler, "m") == "cancelled"
    scheduler = running()
    scheduler.handle(UserAsked(2.0, "m", "pause"))
    assert scheduler.handle(UserAsked(3.0, "m", "cancel")) == [] and status(scheduler, "m") == "cancelled"


def test_new_estimates_change_what_is_expected():
    scheduler = running()
    scheduler.handle(Started(0.0, "n", 1))
    assert scheduler.forecast()["n"].end_s == 100.0 and scheduler.forecast()["m"].start_s == 100.0
    scheduler.handle(Progressed(20.0, "n", 30.0, {1: 3.0, 2: 9.0}))
    assert scheduler.forecast()["n"].end_s == 30.0 and scheduler.forecast()["m"].start_s == 30.0
    assert scheduler.tasks["n"].job.speeds == {1: 3.0}  # of counts that it can use
    scheduler.handle(Progressed(21.0, "m", 50.0, {}))
    assert scheduler.forecast()["m"].end_s == 80.0
    assert scheduler.gap().makespan_s == 59.0 and scheduler.gap().bound_s == 59.0


@pytest.mark.parametrize(("samples", "anew"), [(98.5, False), (40.0, True)])
def test_an_estimate_that_changes_much_makes_a_new_plan(samples, anew):
    scheduler = Scheduler(Cluster({"a": 2}), PLAIN)
    submit(scheduler, job("n"), job("wide", g2=1.0))  # one GPU is free, and wide waits for both
    scheduler.handle(Started(0.0, "n", 1))
    decisions = scheduler.handle(Progressed(1.0, "n", samples, {}))
    assert any(isinstance(one, PlanMade) for one in decisions) == anew


def kin(name: str) -> Job:
    """A task that gains much by sharing: one trial where there is room for eight."""
    return Job(name, "t", {1: 0.99}, 100.0, family=TaskFamily("t/base", 1, 1.0, {1: 8}, {1: 1.0}, {1: 0.01}))


def merged() -> tuple[Scheduler, str]:
    """A scheduler whose only GPU is busy for a while, and then runs three tasks as one."""
    scheduler = Scheduler(ONE, PLAIN.model_copy(update={"merge": True, "retries": 0}))
    submit(scheduler, job("n"))
    submit(scheduler, kin("a"), kin("b"), kin("c"), at_s=1.0)
    decisions = scheduler.handle(Ended(100.0, "n", 1))
    merge = next(one for one in decisions if isinstance(one, Merge))
    assert set(merge.jobs) == {"a", "b", "c"} and set(started(decisions)) == {merge.into.name}
    assert {status(scheduler, name) for name in "abc"} == {"merged"}
    return scheduler, merge.into.name


def test_members_of_a_merged_task_end_with_it():
    scheduler, whole = merged()
    scheduler.handle(Ended(150.0, whole, 1))
    assert {(status(scheduler, name), scheduler.tasks[name].ended_s) for name in "abc"} == {("ended", 150.0)}


def test_a_merged_task_goes_on_while_any_member_is_wanted():
    scheduler, whole = merged()
    assert scheduler.handle(UserAsked(110.0, "a", "cancel")) == [] and status(scheduler, "a") == "cancelled"
    assert scheduler.handle(UserAsked(111.0, "b", "pause")) == []
    assert scheduler.handle(UserAsked(112.0, "c", "cancel")) == [Stop(112.0, whole, 1, "paused")]
    scheduler.handle(Halted(113.0, whole, 1, 200.0))
    assert status(scheduler, whole) == "paused"
    assert set(started(scheduler.handle(UserAsked(114.0, "b", "resume")))) == {whole}
    assert scheduler.handle(UserAsked(115.0, "b", "cancel")) == [Stop(115.0, whole, 2, "cancelled")]
    scheduler.handle(Halted(116.0, whole, 2, 200.0))
    assert {status(scheduler, name) for name in (*"abc", whole)} == {"cancelled"}


def test_members_of_a_merged_task_that_fails_are_tried_alone():
    scheduler, whole = merged()
    scheduler.handle(UserAsked(105.0, "c", "cancel"))
    decisions = scheduler.handle(Failed(110.0, whole, 1, "out of memory", 250.0))
    assert status(scheduler, whole) == "failed" and len(started(decisions)) == 1
    assert sorted(status(scheduler, name) for name in "abc") == ["cancelled", "running", "waiting"]
    (first,) = started(decisions)
    assert first in "ab" and not any(isinstance(one, Merge) for one in decisions)
    assert scheduler.tasks[first].alone and scheduler.tasks[first].reason.endswith("out of memory")


def test_a_plan_is_made_only_where_something_could_start():
    scheduler = running()
    decisions = scheduler.handle(Submitted(2.0, job("k")))
    assert not any(isinstance(one, PlanMade) for one in decisions)
    assert any(isinstance(one, PlanMade) for one in scheduler.handle(Ended(50.0, "n", 1)))
