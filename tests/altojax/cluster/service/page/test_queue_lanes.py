"""The timeline's bars: every GPU of every task, and nothing on top of anything else."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_queue import busy, job, queue

from altojax.cluster.service.page.lanes import bars, nodes_of
from altojax.cluster.service.queue.queue_view import AttemptSpan

NODES = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.just(4), min_size=1)


def lanes_of(bar):
    return range(bar.lane, bar.lane + bar.lanes)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 60), NODES, st.floats(1, 20000), st.integers(0, 2**31))
def test_bars_are_all_gpus_of_all_tasks_and_never_overlap(count, nodes, now_s, seed):
    snapshot = busy(count, nodes=nodes, now_s=now_s, seed=seed)
    drawn = bars(snapshot)
    total = sum(nodes.values())
    held = {lane: [] for lane in range(total)}
    for bar in drawn:
        for lane in lanes_of(bar):
            held[lane].append((bar.start_s, bar.end_s))
    for stays in held.values():
        stays.sort()
        assert all(end <= start + 2e-3 for (_, end), (start, _) in itertools.pairwise(stays))
    lanes = dict.fromkeys((job.name for job in snapshot.jobs), 0)
    for bar in drawn:
        lanes[bar.task] += bar.lanes
    assert lanes == {job.name: job.width for job in snapshot.jobs}


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(0, 2**31))
def test_what_ran_lies_on_the_gpus_it_had(count, seed):
    snapshot = busy(count, nodes={"a": 4, "b": 6}, seed=seed)
    first = {"a": 0, "b": 4}
    for span in snapshot.spans:
        had = {first[node] + gpu for node, gpus in span.gpus.items() for gpu in gpus}
        assert had == {lane for bar in bars(snapshot) if bar.task == span.job for lane in lanes_of(bar)}


def test_a_planned_gang_is_drawn_inside_one_node_where_it_fits():
    running = job("a-1", status="running", gpus={"a": (0, 1)}, start_s=0.0, end_s=50.0)
    gang = job("b-2", width=3, start_s=0.0, end_s=10.0)
    drawn = bars(
        queue([running, gang], [AttemptSpan("a-1", 1, "research", {"a": (0, 1)}, 0.0)], nodes={"a": 4, "b": 4})
    )
    assert [(bar.lane, bar.lanes) for bar in drawn if bar.task == "b-2"] == [(4, 3)]


def test_a_gang_wider_than_a_node_takes_several():
    drawn = bars(queue([job("a-1", width=8, start_s=5.0, end_s=9.0)], nodes={"a": 4, "b": 4}))
    assert [(bar.lane, bar.lanes, bar.kind) for bar in drawn] == [(0, 8, "planned")]


def test_a_task_without_a_forecast_is_not_drawn():
    assert bars(queue([job("a-1"), job("b-2", width=2), job("c-3", status="paused", width=1, start_s=0.0)])) == []


def test_nothing_is_planned_on_a_task_whose_end_nobody_knows():
    running = job("a-1", status="running", gpus={"a": (0,)}, start_s=0.0)
    waiting = job("b-2", width=1, start_s=30.0, end_s=40.0)
    drawn = bars(queue([running, waiting], [AttemptSpan("a-1", 1, "research", {"a": (0,)}, 0.0)], nodes={"a": 1}))
    assert [(bar.task, bar.end_s) for bar in drawn] == [("a-1", None)]


def test_a_node_that_is_gone_keeps_its_past():
    snapshot = queue(
        [job("a-1")], [AttemptSpan("a-1", 1, "research", {"gone": (2,)}, 0.0, 5.0, "failed")], nodes={"a": 2}
    )
    assert nodes_of(snapshot) == {"a": 2, "gone": 3}
    assert [(bar.lane, bar.outcome) for bar in bars(snapshot)] == [(4, "failed")]


def test_a_long_past_is_cut_at_its_old_end():
    spans = [AttemptSpan(f"a-{i}", 1, "research", {"a": (0,)}, float(i), i + 1.0, "ended") for i in range(4100)]
    drawn = bars(queue([], spans, nodes={"a": 1}))
    assert len(drawn) == 4000 and drawn[-1].task == "a-4099"
