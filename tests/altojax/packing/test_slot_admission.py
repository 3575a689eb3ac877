"""Admission to free slots: never more than fits, the largest first, like after like."""

from hypothesis import given, settings
from hypothesis import strategies as st

from altojax.packing.slot_admission import Load, step_tokens, widest
from altojax.packing.slot_admission import admit as admit_to_groups

sizes = st.tuples(st.integers(1, 8), st.sampled_from((20.0, 31.5, 64.0)))
queues = st.tuples(st.lists(sizes, max_size=8), st.lists(sizes, max_size=5)).map(
    lambda both: (
        [Load(i, *size, 64) for i, size in enumerate(both[0])],
        [Load(100 + i, *size, 64) for i, size in enumerate(both[1])],
    )
)


def loads(*rows: int, tokens: float = 32.0, first: int = 0) -> list[Load]:
    return [Load(first + i, count, tokens, 64) for i, count in enumerate(rows)]


def admit(waiting, running, free_slots, capacity, left=None) -> list[Load]:
    """One device."""
    return [load for load, _ in admit_to_groups(waiting, [running], [free_slots], capacity, left)]


def names(chosen: list[Load]) -> list[int]:
    return [load.trial for load in chosen]


def test_the_tokens_of_a_step_are_those_that_its_trials_are_expected_to_have():
    assert step_tokens([[]]) == 0
    assert step_tokens([loads(3)]) == 3 * 32
    assert step_tokens([[Load(0, 3, 32.0, 64), Load(1, 2, 30.4, 64)]]) == 96 + 61
    assert Load(0, 3, 32.0, 64).most == 3 * 64
    tiled = Load(0, 3, 30.4, 50).on_device(1, 16)
    assert tiled.tokens == 96 and tiled.most == 3 * 64 and Load(0, 5, 9.0, 9, group=2).on_device(2, 16).rows == 4


@settings(deadline=None)
@given(queues, st.integers(0, 6), st.integers(0, 4000), sizes | st.none())
def test_capacity_and_slots_are_never_exceeded_and_nothing_that_fits_is_left_out(queue, free, capacity, left):
    waiting, running = queue
    gone = None if left is None else Load(999, *left, 64)
    chosen = admit(waiting, running, free, capacity, gone)
    assert len(chosen) <= free and len(set(names(chosen))) == len(chosen)
    assert set(chosen) <= set(waiting)
    for count in range(1, len(chosen) + 1):
        together = [*running, *chosen[:count]]
        assert step_tokens([together]) <= capacity or len(together) == 1, "one alone is taken in parts"
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
    waiting = [Load(0, 8, 32.0, 64, 100), Load(1, 1, 32.0, 64, 800), Load(2, 4, 32.0, 64, 200)]
    assert names(admit(waiting, [], 3, 10_000, left=Load(9, 8, 32.0, 64))) == [1, 2, 0]


def test_a_smaller_trial_fills_what_a_larger_one_cannot():
    assert names(admit(loads(8, 6, 2), [], 3, 10 * 32)) == [0, 2]


def test_an_exit_is_backfilled_by_a_trial_of_the_same_batch_size_and_then_by_the_largest():
    waiting = loads(8, 4, 4, 2)
    assert names(admit(waiting, [], 1, 10_000, left=loads(4, first=9)[0])) == [1]
    assert names(admit(waiting, [], 3, 10_000, left=loads(4, first=9)[0])) == [1, 0, 2]
    assert names(admit(waiting, [], 1, 10_000, left=loads(3, first=9)[0])) == [0]


def test_nothing_is_admitted_where_nothing_fits():
    assert admit(loads(8, 4), loads(4, first=9), 3, 5 * 32) == []
    assert admit(loads(1), [], 0, 10_000) == []
    assert admit([], loads(1), 2, 10_000) == []


def test_devices_in_lockstep_take_what_the_busiest_takes():
    assert step_tokens([loads(2, 2), loads(6), []]) == 6 * 32


@settings(deadline=None)
@given(queues, st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_a_group_is_never_busier_than_another_with_a_free_slot_by_more_than_one_trial(queue, free):
    groups = [[] for _ in free]
    left = list(free)
    for load, group in admit_to_groups(queue[0], groups, free, 10**9):
        groups[group].append(load)
        left[group] -= 1
    assert all(count >= 0 for count in left)
    tokens = [sum(load.tokens for load in group) for group in groups]
    for number, count in enumerate(left):
        if count:
            assert max(tokens) - tokens[number] <= max((load.tokens for group in groups for load in group), default=0)


def test_a_free_slot_is_filled_where_there_is_least_to_do():
    running = [loads(8, first=10), loads(2, first=20), loads(4, first=30)]
    waiting = loads(4, 2)
    assert admit_to_groups(waiting, running, [1, 1, 1], 10_000) == [(waiting[0], 1), (waiting[1], 2)]


def test_the_largest_step_has_the_largest_trials_dealt_evenly():
    assert widest(loads(8, 1, 4, 4, 2), groups=2, slots=2) == 10 * 32
    assert widest(loads(8, 1, 4, 4, 2), groups=1, slots=2) == 12 * 32
