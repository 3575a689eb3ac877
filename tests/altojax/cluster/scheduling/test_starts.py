"""Tasks start as planned, and what is forecast is what happens while all goes as estimated."""

from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import PLAIN, job, started, submit

from altojax.cluster.scheduling.records import Ended, PlanMade, Submitted
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.scheduling.resources.tenants import Tenant
from altojax.cluster.scheduling.scheduler import Scheduler

TASK = st.tuples(st.sampled_from("xyz"), st.integers(1, 500), st.sampled_from([(1,), (1, 2), (2, 4), (1, 4), (8,)]))


@settings(max_examples=40, deadline=None)
@given(
    drawn=st.lists(TASK, min_size=1, max_size=20),
    plan=st.sampled_from(["portfolio", "fifo", "backfill", "lpt"]),
    patience_s=st.sampled_from([None, 300.0]),
)
def test_a_forecast_comes_true_while_all_goes_as_estimated(drawn, plan, patience_s):
    tenants = {"x": Tenant(quota=4), "y": Tenant(weight=2.0)}
    policy = PLAIN.model_copy(update={"plan": plan, "patience_s": patience_s, "tenants": tenants})
    tasks = [
        job(f"n{number}", tenant, samples=float(samples), **{f"g{width}": width**0.8 for width in widths})
        for number, (tenant, samples, widths) in enumerate(drawn)
        if tenant != "x" or min(widths) <= 4
    ]
    scheduler = Scheduler(Cluster({"a": 4, "b": 4}), policy)
    submit(scheduler, *tasks)
    expected = dict(scheduler.forecast())
    assert expected.keys() == {one.name for one in tasks}
    if patience_s is not None and any(one.start_s >= patience_s for one in expected.values()):
        return  # a hold is a change, after which it plans anew
    while running := [task for task in scheduler.tasks.values() if task.status == "running"]:
        at_s = min(task.until_s for task in running)
        scheduler.handle(*(Ended(at_s, task.job.name, 1) for task in running if task.until_s == at_s))
    for name, one in expected.items():
        task = scheduler.tasks[name]
        assert (task.started_s, task.ended_s) == (one.start_s, one.end_s)


def planned(*gpus: dict[str, tuple[int, ...]]) -> Scheduler:
    """Tasks n0, n1, … of 100 s, and a plan that gives each the GPUs where it is to run."""
    scheduler = Scheduler(Cluster({"a": 2}), PLAIN)
    for number, one in enumerate(gpus):
        widths = {"g1": 1.0} if len(one["a"]) == 1 else {"g2": 1.0}
        scheduler.apply(Submitted(0.0, job(f"n{number}", **widths)))
    order = tuple(f"n{number}" for number in range(len(gpus)))
    widths = tuple(len(one["a"]) for one in gpus)
    scheduler.apply(PlanMade(0.0, "cp-sat", order, widths, 200.0, 200.0, gpus))
    return scheduler


def test_a_plan_with_places_is_kept_to_the_letter():
    scheduler = planned({"a": (1,)}, {"a": (0, 1)}, {"a": (0,)})
    # n2 could start on GPU 0, but n1 comes first there.
    assert started(scheduler.decide()) == {"n0": {"a": (1,)}}
    assert started(scheduler.handle(Ended(100.0, "n0", 1))) == {"n1": {"a": (0, 1)}}
    assert started(scheduler.handle(Ended(200.0, "n1", 1))) == {"n2": {"a": (0,)}}


def test_once_something_else_happens_a_plan_with_places_is_made_anew():
    scheduler = planned({"a": (1,)}, {"a": (0, 1)}, {"a": (0,)})
    scheduler.decide()
    decisions = scheduler.handle(Submitted(10.0, job("new")))
    assert isinstance(decisions[0], PlanMade) and not decisions[0].gpus
    assert len(started(decisions)) == 1


def test_the_gap_is_that_of_what_is_expected():
    scheduler = Scheduler(Cluster({"a": 2}), PLAIN)
    submit(scheduler, *(job(f"n{number}") for number in range(3)))
    gap = scheduler.gap()
    assert (gap.makespan_s, gap.bound_s) == (200.0, 150.0)
    assert abs(gap.share - 1 / 3) < 1e-12
    assert Scheduler(Cluster({"a": 2}), PLAIN).gap().share == 0.0
