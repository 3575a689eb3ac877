"""Admission to free slots: never more than fits, the largest first, like after like."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from altojax.device.batch_shapes import round_rows
from altojax.packing.slot_admission import Load, Packing, expected_tokens, step_tokens, steps_of, widest
from altojax.packing.slot_admission import admit as admit_to_groups

LENGTHS = (32, 48, 64)
sizes = st.tuples(st.integers(1, 8), st.sampled_from(LENGTHS))
queues = st.tuples(st.lists(sizes, max_size=8), st.lists(sizes, max_size=5)).map(
    lambda both: (
        [Load(i, *size) for i, size in enumerate(both[0])],
        [Load(100 + i, *size) for i, size in enumerate(both[1])],
    )
)


def loads(*rows: int, length: int = 32, first: int = 0) -> list[Load]:
    return [Load(first + i, count, length) for i, count in enumerate(rows)]


def admit(waiting, running, free_slots, capacity, left=None) -> list[Load]:
    """One device."""
    return [load for load, _ in admit_to_groups(waiting, [running], [free_slots], capacity, left)]


def names(chosen: list[Load]) -> list[int]:
    return [load.trial for load in chosen]


def test_the_tokens_of_a_step_are_padded_rows_times_the_longest_row():
    assert step_tokens([[]]) == 0
    assert step_tokens([loads(3)]) == 3 * 32
    both = [Load(0, 3, 32), Load(1, 2, 64)]
    assert step_tokens([both]) == round_rows(5, 2) * 64 == 6 * 64


@settings(deadline=None)
@given(queues, st.integers(0, 6), st.integers(0, 4000), sizes | st.none())
def test_capacity_and_slots_are_never_exceeded_and_nothing_that_fits_is_left_out(queue, free, capacity, left):
    waiting, running = queue
    gone = None if left is None else Load(999, *left)
    chosen = admit(waiting, running, free, capacity, gone)
    assert len(chosen) <= free and len(set(names(chosen))) == len(chosen)
    assert set(chosen) <= set(waiting)
    for count in range(1, len(chosen) + 1):
        assert step_tokens([[*running, *chosen[:count]]]) <= capacity
    if len(chosen) < free:
        more = [load for load in waiting if load not in chosen]
        assert all(step_tokens([[*running, *chosen, load]]) > capacity for load in more)


@settings(deadline=None)
@given(queues, st.integers(0, 6), st.integers(0, 4000))
def test_the_choice_does_not_depend_on_the_order_of_the_queue(queue, free, capacity):
    waiting, running = queue
    assert admit(waiting, running, free, capacity) == admit(waiting[::-1], running[::-1], free, capacity)


def test_the_largest_micro_batch_goes_first_and_equals_in_the_order_of_the_config():
    assert names(admit(loads(2, 8, 4, 8), [], 4, 10_000)) == [1, 3, 2, 0]


def test_the_longest_schedule_goes_first_whatever_its_batch():
    waiting = [Load(0, 8, 32, steps=100), Load(1, 1, 32, steps=800), Load(2, 4, 32, steps=200)]
    assert names(admit(waiting, [], 3, 10_000, left=Load(9, 8, 32))) == [1, 2, 0]


def test_a_smaller_trial_fills_what_a_larger_one_cannot():
    assert names(admit(loads(8, 6, 2), [], 3, 10 * 32)) == [0, 2]


def test_an_exit_is_backfilled_by_a_trial_of_the_same_batch_size_and_then_by_the_largest():
    waiting = loads(8, 4, 4, 2)
    assert names(admit(waiting, [], 1, 10_000, left=Load(9, 4, 32))) == [1]
    assert names(admit(waiting, [], 3, 10_000, left=Load(9, 4, 32))) == [1, 0, 2]
    assert names(admit(waiting, [], 1, 10_000, left=Load(9, 3, 32))) == [0]


def test_among_equals_rows_as_long_as_those_that_run_go_first():
    waiting = [Load(0, 4, 32), Load(1, 4, 64), Load(2, 4, 48)]
    assert names(admit(waiting, [Load(9, 4, 64)], 3, 10_000)) == [1, 2, 0]
    assert names(admit(waiting, [Load(9, 4, 32)], 1, 10_000)) == [0]
    assert names(admit(waiting, [], 1, 10_000)) == [1]


def test_nothing_is_admitted_where_nothing_fits():
    assert admit(loads(8, 4), loads(4, first=9), 3, 5 * 32) == []
    assert admit(loads(1), [], 0, 10_000) == []
    assert admit([], loads(1), 2, 10_000) == []
    assert admit(loads(1), [], 1, 31) == []


def test_devices_in_lockstep_take_what_the_busiest_takes():
    assert step_tokens([loads(2, 2), loads(6), []]) == 6 * 32
    assert step_tokens([loads(6), [Load(9, 1, 64)]]) == 6 * 64


@settings(deadline=None)
@given(queues, st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_a_group_is_never_busier_than_another_with_a_free_slot_by_more_than_one_trial(queue, free):
    groups = [[] for _ in free]
    left = list(free)
    for load, group in admit_to_groups(queue[0], groups, free, 10**9):
        groups[group].append(load)
        left[group] -= 1
    assert all(count >= 0 for count in left)
    rows = [sum(load.rows for load in group) for group in groups]
    for number, count in enumerate(left):
        if count:
            assert max(rows) - rows[number] <= max((load.rows for group in groups for load in group), default=0)


@settings(deadline=None)
@given(queues, st.lists(st.integers(0, 4), min_size=2, max_size=4), st.integers(0, 2000))
def test_capacity_holds_on_every_device_whatever_runs_there(queue, free, capacity):
    running = [[] for _ in free]
    for number, load in enumerate(queue[1]):
        running[number % len(free)].append(load)
    chosen = admit_to_groups(queue[0], running, free, capacity)
    for load, group in chosen:
        running[group].append(load)
        assert step_tokens(running) <= capacity


def test_a_free_slot_is_filled_where_there_is_least_to_do():
    running = [loads(8, first=10), loads(2, first=20), loads(4, first=30)]
    assert admit_to_groups(loads(4, 2), running, [1, 1, 1], 10_000) == [(Load(0, 4, 32), 1), (Load(1, 2, 32), 2)]


def test_the_largest_step_has_the_largest_trials_dealt_evenly():
    assert widest(loads(8, 1, 4, 4, 2), groups=2, slots=2) == (10, 32)
    assert widest(loads(8, 1, 4, 4, 2), groups=1, slots=2) == (12, 32)


def cuts(sizes):
    """All ways to cut a sequence into runs."""
    for bars in itertools.product([False, True], repeat=len(sizes) - 1):
        ends = [i + 1 for i, bar in enumerate(bars) if bar]
        yield [sizes[a:b] for a, b in itertools.pairwise([0, *ends, len(sizes)])]


@settings(deadline=None)
@given(st.lists(st.lists(sizes, max_size=4), min_size=1, max_size=3), st.integers(0, 400), st.integers(0, 1500))
def test_trials_step_together_only_where_no_other_cut_by_length_is_cheaper(drawn, price, capacity):
    count = itertools.count()
    groups = [[Load(next(count), *size) for size in group] for group in drawn]
    found = steps_of(groups, Packing(price), capacity)
    every = [load for group in groups for load in group]
    stepped = [load for step in found for group in step for load in group]
    assert sorted(stepped, key=lambda one: one.trial) == every, "each takes one micro-batch"
    for step in found:
        assert all(set(own) <= set(group) for own, group in zip(step, groups, strict=True)), "each where it is"
    lengths = sorted({load.length for load in every})
    ways = []
    for cut in cuts(lengths) if lengths else []:
        steps = [[[load for load in group if load.length in run] for group in groups] for run in cut]
        fits = all(len(run) == 1 or step_tokens(step) <= capacity for run, step in zip(cut, steps, strict=True))
        ways += [sum(price + expected_tokens(step) for step in steps)] if fits else []
    assert sum(price + expected_tokens(step) for step in found) == min(ways, default=0)


def test_a_short_task_beside_a_long_one_steps_apart_where_padding_costs_more_than_a_step():
    groups = [[Load(0, 4, 32), Load(1, 4, 96), Load(2, 4, 256)]]
    alike = Packing(4 * (256 - 96) + 1)
    assert [names(step[0]) for step in steps_of(groups, Packing(16))] == [[0], [1], [2]]
    assert [names(step[0]) for step in steps_of(groups, Packing(4 * 64))] == [[0, 1], [2]]
    assert [names(step[0]) for step in steps_of(groups, Packing(10_000))] == [[0, 1, 2]]
    assert [names(step[0]) for step in steps_of(groups, Packing())] == [[0, 1, 2]]
    assert [names(step[0]) for step in steps_of(groups, alike, 8 * 256 - 1)] == [[0, 1], [2]]


def test_tasks_whose_longest_rows_are_alike_but_whose_usual_rows_are_not_step_apart():
    groups = [[Load(0, 4, 512, usual=32), Load(1, 4, 512, usual=384)]]
    assert [names(step[0]) for step in steps_of(groups, Packing(16))] == [[0], [1]]


@settings(deadline=None)
@given(queues, st.integers(0, 6), st.integers(0, 4000), st.integers(0, 300), st.booleans())
def test_what_is_admitted_fits_step_by_step_and_nothing_that_fits_is_left_out(queue, free, capacity, price, like_first):
    waiting, running = queue
    packing = Packing(price, like_first)
    chosen = [load for load, _ in admit_to_groups(waiting, [running], [free], capacity, None, packing)]
    for count in range(1, len(chosen) + 1):
        for step in steps_of([[*running, *chosen[:count]]], packing, capacity):
            assert step_tokens(step) <= capacity
    if len(chosen) < free:
        for load in (load for load in waiting if load not in chosen):
            steps = steps_of([[*running, *chosen, load]], packing, capacity)
            assert any(step_tokens(step) > capacity for step in steps)


def test_like_lengths_go_first_where_that_is_wanted_and_the_longest_schedule_begins():
    waiting = [Load(0, 4, 32, steps=9), Load(1, 4, 256, steps=8), Load(2, 4, 32, steps=7), Load(3, 4, 256, steps=6)]
    assert names(admit_all(waiting, Packing(16, like_first=True))) == [0, 2, 1, 3]
    assert names(admit_all(waiting, Packing(16))) == [0, 1, 2, 3]


def admit_all(waiting: list[Load], packing: Packing) -> list[Load]:
    return [load for load, _ in admit_to_groups(waiting, [[]], [len(waiting)], 10**6, None, packing)]


def test_the_largest_step_is_of_one_length_where_unlike_ones_step_apart():
    every = [*loads(8, 8, 8), *loads(2, 1, length=256, first=3)]
    assert widest(every, groups=1, slots=4) == (26, 256)
    assert widest(every, groups=1, slots=4, packing=Packing(16)) == (24, 32)
    assert widest(every, groups=1, slots=2, packing=Packing(16)) == (3, 256)
