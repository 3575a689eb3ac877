"""Each rival does what its name says, in the same state machine."""

import pytest
from schedules import PLAIN, job, started, submit

from altojax.cluster.scheduling.records import Ended, PlanMade
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.scheduling.scheduler import Scheduler


def rival(name: str, gpus: int = 4) -> Scheduler:
    return Scheduler(Cluster({"a": gpus}), PLAIN.model_copy(update={"plan": name}))


def test_fifo_lets_nobody_overtake():
    scheduler = rival("fifo")
    decisions = submit(scheduler, job("first", g2=1.0), job("wide", g4=1.0), job("small", g1=1.0))
    assert set(started(decisions)) == {"first"}
    assert set(started(scheduler.handle(Ended(100.0, "first", 1)))) == {"wide"}
    assert set(started(scheduler.handle(Ended(200.0, "wide", 1)))) == {"small"}


def test_backfilling_overtakes_only_where_it_does_not_delay_the_first():
    scheduler = rival("backfill")
    tasks = [
        job("first", g2=1.0),
        job("wide", g3=1.0),  # from 100 s on, on three of the four
        job("long", g1=1.0, samples=500.0),  # beside it, on the GPU that it leaves
        job("late", g1=1.0, samples=150.0),  # would take its third
        job("short", g1=1.0, samples=99.0),  # ends before
    ]
    assert set(started(submit(scheduler, *tasks))) == {"first", "long", "short"}
    scheduler.handle(Ended(99.0, "short", 1))
    assert scheduler.tasks["late"].status == "waiting"
    assert set(started(scheduler.handle(Ended(100.0, "first", 1)))) == {"wide"}


def test_lpt_starts_the_longest_first():
    scheduler = rival("lpt", gpus=1)
    tasks = {"short": 10.0, "longest": 90.0, "middle": 50.0}
    submit(scheduler, job("now", samples=1.0))
    submit(scheduler, *(job(name, samples=samples) for name, samples in tasks.items()), at_s=0.5)
    begun = ["now"]
    while len(begun) < 4:
        task = scheduler.tasks[begun[-1]]
        begun += started(scheduler.handle(Ended(task.until_s, begun[-1], 1)))
    assert begun == ["now", "longest", "middle", "short"]


def test_one_gpu_each_and_one_task_at_a_time():
    tasks = [job(f"n{number}", g1=1.0, g2=1.9, g4=3.5) for number in range(3)]
    assert started(submit(rival("one_gpu"), *tasks)) == {f"n{number}": {"a": (number,)} for number in range(3)}
    assert started(submit(rival("one_at_a_time"), *tasks)) == {"n0": {"a": (0, 1, 2, 3)}}


@pytest.mark.parametrize("name", ["fifo", "backfill", "lpt", "one_gpu", "one_at_a_time"])
def test_rivals_make_no_plans(name):
    decisions = submit(rival(name), *(job(f"n{number}") for number in range(6)))
    assert not any(isinstance(one, PlanMade) for one in decisions)
