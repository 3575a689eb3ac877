"""A running task moves to more GPUs only where it pays, and nothing goes to and fro."""

from collections import defaultdict
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import PLAIN, job, run_to_end, started, submit, width

from altojax.cluster.scheduling.records import (
    Ended,
    Failed,
    Halted,
    Hold,
    Start,
    Started,
    Stop,
    Submitted,
    UserAsked,
    from_json,
)
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.scheduling.scheduler import Scheduler
from altojax.cluster.simulation.arrivals import arrivals
from altojax.cluster.simulation.workload import Workload
from jaxrun.config.config import check_config

MOVING = PLAIN.model_copy(update={"moves": True, "park_s": 10.0, "resume_s": 20.0, "move_gain": 2.0})


def two_tasks(long_samples: float = 1000.0) -> Scheduler:
    """A task that could use two GPUs runs on one, since a second task has the other one."""
    scheduler = Scheduler(Cluster({"a": 2}), MOVING)
    submit(scheduler, job("short", samples=9000.0, g1=1.0))  # as it is thought to be
    submit(scheduler, job("long", samples=long_samples, setup_s=5.0, g1=1.0, g2=1.8))
    scheduler.handle(Started(1.0, "short", 1), Started(5.0, "long", 1))
    return scheduler


def test_a_task_moves_to_gpus_that_nobody_else_can_use():
    scheduler = two_tasks()
    hold, stop = scheduler.handle(Ended(101.0, "short", 1))
    assert isinstance(hold, Hold) and (hold.job, hold.gpus) == ("long", {"a": (0, 1)})
    assert stop == Stop(101.0, "long", 1, "moved")
    assert scheduler.forecast()["long"].gpus == 2
    (start,) = scheduler.handle(Halted(111.0, "long", 1, 904.0))
    # 20 s to resume, 5 s of set-up, 904 samples at 1.8 a second.
    assert isinstance(start, Start) and (start.attempt, start.gpus) == (2, {"a": (0, 1)})
    assert start.until_s == 111.0 + 20.0 + 5.0 + 904.0 / 1.8


def test_a_move_must_save_a_multiple_of_what_it_costs():
    # From 101 s on, s more seconds on one GPU are s / 1.8 on two: s · 0.444 is saved, and 2 · 35 s must be.
    assert two_tasks(96.0 + 70.0 / (1 - 1 / 1.8) - 1.0).handle(Ended(101.0, "short", 1)) == []
    assert len(two_tasks(96.0 + 70.0 / (1 - 1 / 1.8) + 1.0).handle(Ended(101.0, "short", 1))) == 2


def test_nothing_moves_while_somebody_waits_or_before_it_trains():
    scheduler = two_tasks()
    decisions = scheduler.handle(Submitted(50.0, job("wide", g2=1.0)), Ended(101.0, "short", 1))
    assert {one.kind for one in decisions} <= {"plan"}
    scheduler = Scheduler(Cluster({"a": 2}), MOVING)
    submit(scheduler, job("short", samples=9000.0, g1=1.0))
    assert started(submit(scheduler, job("long", samples=1000.0, g1=1.0, g2=1.8))) == {"long": {"a": (1,)}}
    assert scheduler.handle(Ended(101.0, "short", 1)) == []


def test_gpus_of_a_move_are_kept_while_it_is_under_way():
    scheduler = two_tasks()
    scheduler.handle(Ended(101.0, "short", 1))
    assert started(scheduler.handle(Submitted(105.0, job("new", g1=1.0)))) == {}
    assert set(started(scheduler.handle(Halted(111.0, "long", 1, 904.0)))) == {"long"}


def test_a_move_that_comes_to_nothing_gives_its_gpus_back():
    for event in (Ended(111.0, "long", 1), UserAsked(111.0, "long", "cancel")):
        scheduler = two_tasks()
        scheduler.handle(Ended(101.0, "short", 1))
        scheduler.handle(Submitted(105.0, job("new", g1=1.0)))
        decisions = scheduler.handle(event)
        if event.kind == "asked":
            decisions = scheduler.handle(Halted(112.0, "long", 1, 900.0))
            assert scheduler.tasks["long"].status == "cancelled"
        assert set(started(decisions)) == {"new"}
        assert not scheduler.state.occupancy.holds


def test_a_task_that_dies_while_it_moves_starts_where_it_was_going():
    scheduler = two_tasks()
    scheduler.handle(Ended(101.0, "short", 1))
    assert started(scheduler.handle(Failed(105.0, "long", 1, "killed", 950.0, "node"))) == {"long": {"a": (0, 1)}}


WIDTHS = st.sampled_from([(1, 2), (1, 2, 4), (2, 4, 8), (1, 8)])
TASK = st.tuples(
    st.integers(0, 200), st.integers(20, 2000), WIDTHS, st.lists(st.floats(0.3, 1.2), min_size=3, max_size=3)
)


@settings(max_examples=40, deadline=None)
@given(drawn=st.lists(TASK, min_size=1, max_size=8), kept=st.floats(0.2, 1.0), gain=st.sampled_from([1.1, 3.0]))
def test_nothing_goes_to_and_fro(drawn, kept, gain):
    tasks = [
        {"name": f"n{number}", "arrival_s": at_s, "samples": samples, "kept": kept, "setup_s": 2,
         "speeds": {str(gpus): gpus**power for gpus, power in zip(widths, powers, strict=False)}}
        for number, (at_s, samples, widths, powers) in enumerate(drawn)
    ]  # fmt: skip
    policy = {"move_gain": gain, "park_s": 1, "resume_s": 1, "cp_sat_s": 0, "effort": 8}
    workload = check_config(Workload, {"cluster": {"a": 4, "b": 4}, "tasks": tasks, "policy": policy}, "drawn")
    log, _ = run_to_end(workload, arrivals(workload, Path()), workload.policy)
    widths = defaultdict(list)
    for record in map(from_json, log):
        if isinstance(record, Start):
            widths[record.job].append(width(record.gpus))
    # Nothing fails here, so each start but the first is a move: always to more GPUs than before.
    for one in widths.values():
        assert one == sorted(set(one))
