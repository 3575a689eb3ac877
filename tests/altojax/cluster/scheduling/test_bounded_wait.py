"""Nobody starves: how long a task can wait, and that it would without the bound."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import PLAIN, job, run_to_end, started, submit

from altojax.cluster.scheduling.records import Ended, Hold, NodeChanged, Start, Submitted, from_json
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.scheduling.resources.tenants import Tenant
from altojax.cluster.scheduling.scheduler import Scheduler
from altojax.cluster.simulation.arrivals import arrivals
from altojax.cluster.simulation.workload import Workload
from jaxrun.config.config import check_config

TENANT, KEPT = st.sampled_from(["x", "y", "z"]), st.sampled_from([0.3, 1.0, 1.0])
WIDE = st.tuples(TENANT, st.sampled_from([(2,), (4,), (2, 4), (8,), (1, 4)]), st.integers(0, 100))


@st.composite
def crowds(draw: st.DrawFn) -> tuple[dict[str, int], list[dict]]:
    """A cluster, and tasks of one GPU that keep it full all the time while wider ones arrive."""
    nodes = draw(st.sampled_from([{"a": 4}, {"a": 8}, {"a": 4, "b": 4}, {"a": 2, "b": 4, "c": 2}]))
    gpus = sum(nodes.values())
    every_s = 20 / gpus
    tasks = [
        {"tenant": draw(TENANT), "widths": (1,), "arrival_s": number * every_s, "seconds": draw(st.integers(10, 30))}
        for number in range(8 * gpus)
    ]
    for tenant, widths, at_s in draw(st.lists(WIDE, min_size=1, max_size=5)):
        if any(Cluster(nodes).holds(width) for width in widths):
            tasks.append({"tenant": tenant, "widths": widths, "arrival_s": at_s, "seconds": 25})
    return nodes, [{**task, "kept": draw(KEPT)} for task in tasks]


def workload_of(drawn: list[dict], nodes: dict[str, int], **policy: object) -> Workload:
    tasks = [
        {
            "name": f"n{number}", "tenant": one["tenant"], "arrival_s": one["arrival_s"], "kept": one["kept"],
            "setup_s": 1, "samples": 100.0,
            "speeds": {str(width): 100.0 * width**0.8 / one["seconds"] for width in one["widths"]},
        }
        for number, one in enumerate(drawn)
    ]  # fmt: skip
    settled = {"moves": False, "merge": False, "cp_sat_s": 0, "effort": 8, **policy}
    return check_config(Workload, {"cluster": nodes, "tasks": tasks, "noise": 0.3, "policy": settled}, "drawn")


@settings(max_examples=40, deadline=None)
@given(
    crowd=crowds(),
    patience_s=st.sampled_from([0, 10, 60]),
    plan=st.sampled_from(["portfolio", "portfolio", "lpt", "one_gpu", "backfill"]),
)
def test_no_task_waits_longer_than_its_bound(crowd, patience_s, plan):
    nodes, drawn = crowd
    workload = workload_of(drawn, nodes, patience_s=patience_s, plan=plan)
    log, simulated = run_to_end(workload, arrivals(workload, Path()), workload.policy)
    records = [from_json(line) for line in log]
    since_s = {record.job.name: record.at_s for record in records if isinstance(record, Submitted)}
    starts_s = {record.job: record.at_s for record in records if isinstance(record, Start)}
    longest_s = max(run.end_s - run.start_s for run in simulated.runs.values())
    assert starts_s.keys() == since_s.keys()
    for name, begin_s in since_s.items():
        overdue_s = begin_s + patience_s
        # Who waits longer, and is overdue and still waiting when this one becomes overdue; equals may go first, too.
        older = [
            other
            for other, its_s in since_s.items()
            if other != name and its_s <= begin_s and starts_s[other] >= overdue_s
        ]
        assert starts_s[name] <= overdue_s + (len(older) + 1) * longest_s + 1e-6


def starve(patience_s: float | None) -> float:
    """When a task that needs all of a node starts while a stream of small ones keeps each GPU busy in turn."""
    scheduler = Scheduler(Cluster({"a": 2}), PLAIN.model_copy(update={"patience_s": patience_s, "plan": "one_gpu"}))
    running = started(submit(scheduler, job("small-0", g1=10.0), job("wide", g2=1.0)))
    ends = [(10.0, "small-0")]
    for number in range(1, 200):
        at_s = 5.0 * number
        events: list = [Submitted(at_s, job(f"small-{number}", g1=10.0))]
        events += [Ended(at_s, name, 1) for end_s, name in ends if end_s == at_s]
        running = started(scheduler.handle(*events))
        if "wide" in running:
            return at_s
        ends += [(at_s + 10.0, name) for name in running]
    return float("inf")


def test_a_wide_task_starves_without_the_bound_and_not_with_it():
    assert starve(None) == float("inf")
    assert starve(30.0) <= 30.0 + 10.0


def test_gpus_are_held_for_the_overdue_task_and_others_go_on_elsewhere():
    scheduler = Scheduler(Cluster({"a": 2, "b": 2}), PLAIN.model_copy(update={"patience_s": 50.0, "plan": "one_gpu"}))
    long, short = ({"samples": samples, "g1": 1.0} for samples in (300.0, 100.0))
    submit(scheduler, job("a0", **long), job("a1", **long), job("b0", **short), job("b1", **short), job("wide", g2=1.0))
    hold, *rest = scheduler.handle(Ended(60.0, "b1", 1), Submitted(60.0, job("new", g1=1.0)))
    assert isinstance(hold, Hold) and hold.job == "wide" and hold.gpus == {"b": (0, 1)}
    assert not rest  # the GPU that is free is held
    assert started(scheduler.handle(Ended(70.0, "a0", 1))) == {"new": {"a": (0,)}}
    assert started(scheduler.handle(Ended(80.0, "b0", 1))) == {"wide": {"b": (0, 1)}}


def test_a_hold_ends_with_its_node_and_is_made_anew():
    scheduler = Scheduler(Cluster({"a": 2, "b": 2}), PLAIN.model_copy(update={"patience_s": 50.0, "plan": "one_gpu"}))
    submit(scheduler, *(job(f"n{number}", g1=1.0) for number in range(4)), job("wide", g2=1.0))
    (hold,) = scheduler.handle(Submitted(60.0, job("late", g2=1.0)))
    (again,) = scheduler.handle(NodeChanged(61.0, next(iter(hold.gpus)), 0))
    assert isinstance(again, Hold) and again.job == "wide" and not set(again.gpus) & set(hold.gpus)


def test_a_task_whose_quota_is_used_up_holds_nothing_and_the_next_one_does():
    tenants = {"x": Tenant(quota=1)}
    policy = PLAIN.model_copy(update={"patience_s": 10.0, "plan": "one_gpu", "tenants": tenants})
    scheduler = Scheduler(Cluster({"a": 2}), policy)
    submit(scheduler, job("x1", "x", g1=1.0), job("y1", "y", g1=1.0))
    submit(scheduler, job("x2", "x", g1=1.0), job("y2", "y", g2=1.0), at_s=1.0)
    (hold,) = scheduler.handle(Submitted(20.0, job("x3", "x", g1=1.0)))
    assert isinstance(hold, Hold) and hold.job == "y2"
