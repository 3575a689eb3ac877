"""Batch shapes are few, hold what they are for, and cost no more than padding or compiling has to."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altojax.shapes import Shape, ShapeLadder, round_rows
from backbone.data import bucket_length

LENGTHS = (4, 6, 8, 12, 16)
PATIENCE = 2000


@given(st.integers(1, 500), st.integers(0, 64))
def test_rounding_adds_fewer_rows_than_slots(rows, slots):
    rounded = round_rows(rows, slots)
    assert rows <= rounded < rows + max(slots, 1)


@given(st.integers(1, 64))
def test_few_row_counts_are_left_after_rounding(slots):
    """Any multiple of `slots` rows up to 4 · slots comes to at most eight counts, whatever is parked."""
    assert len({round_rows(rows, slots) for rows in range(1, 4 * slots + 1)}) <= 8


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, LENGTHS[-1]), st.integers(0, 400), st.integers(1, 16)), min_size=1
    )
)
def test_a_ladders_shapes_hold_what_they_are_for_at_a_bounded_price(requests):
    ladder = ShapeLadder(LENGTHS)
    for rows, length, targets, slots in requests:
        shape = ladder.fit(rows, length, targets, slots)
        assert rows <= shape.rows < rows + max(slots, 1)
        assert length <= shape.length and shape.length in LENGTHS
        assert targets <= shape.targets
        own = round_rows(rows, slots) * bucket_length(length, LENGTHS)
        assert 8 * shape.rows * shape.length <= 9 * own
        assert shape in ladder.seen
    assert len(set(ladder.seen)) == len(ladder.seen)


def test_a_ladder_takes_a_shape_again_and_a_resumed_one_takes_the_same():
    ladder = ShapeLadder(LENGTHS)
    first = ladder.fit(16, 8, 40, 8)
    assert ladder.fit(15, 8, 50, 8) == first and ladder.fit(16, 7, 64, 8) == first
    assert ShapeLadder(LENGTHS, ladder.seen).fit(15, 7, 33, 8) == first
    assert len(ladder.seen) == 1
    assert ladder.fit(32, 8, 40, 8) != first


requests = st.lists(
    st.tuples(st.integers(1, 32), st.integers(1, LENGTHS[-1]), st.integers(1, 200), st.integers(1, 16)), min_size=1
)


@settings(deadline=None)
@given(requests, st.integers(1, 20))
def test_where_compiling_is_dear_padding_and_compiling_cost_at_most_twice_what_either_alone_would(asked, repeats):
    ladder = ShapeLadder(LENGTHS, [Shape(64, LENGTHS[-1], 256)], PATIENCE, least_slots=16)
    padding = 0
    wanted: dict[Shape, int] = {}
    for rows, length, targets, slots in itertools.chain.from_iterable([asked] * repeats):
        shape = ladder.fit(rows, length, targets, slots)
        coarse = round_rows(rows, 16) if rows >= 16 else 1 << (rows - 1).bit_length()
        own = Shape(coarse, bucket_length(length, LENGTHS), max(32, 1 << (targets - 1).bit_length()))
        assert shape.holds(Shape(rows, length, targets))
        padding += max(shape.cost - own.cost, 0)
        wanted[own] = wanted.get(own, 0) + max(64 * LENGTHS[-1] + 256 - own.cost, 0)
    bought = len(ladder.seen) - 1
    best = sum(min(PATIENCE, cost) for cost in wanted.values())
    slack = sum(own.cost for own in wanted)  # a close shape costs up to an eighth more than its own, each time
    assert bought * PATIENCE <= sum(wanted.values())
    assert padding <= best + slack * repeats * len(asked) / 8


def test_a_shape_is_compiled_once_the_padding_without_it_has_cost_as_much():
    ladder = ShapeLadder(LENGTHS, [Shape(64, 16, 256)], PATIENCE)
    shapes = [ladder.fit(8, 8, 32, 8) for _ in range(5)]
    each = Shape(64, 16, 256).cost - Shape(8, 8, 32).cost
    assert shapes == [Shape(64, 16, 256)] * (PATIENCE // each) + [Shape(8, 8, 32)] * (5 - PATIENCE // each)


def test_a_shape_is_foreseen_once_half_of_the_patience_is_gone():
    ladder = ShapeLadder(LENGTHS, [Shape(64, 16, 256)], PATIENCE)
    assert ladder.soon() == []
    ladder.fit(8, 8, 32, 8)
    assert ladder.soon() == [Shape(8, 8, 32)]
    ladder.fit(8, 8, 32, 8)
    assert ladder.seen[-1] == Shape(8, 8, 32) and ladder.soon() == []


@given(st.integers(1, 32), st.integers(1, LENGTHS[-1]), st.integers(1, 16), st.booleans())
def test_a_ladder_never_takes_a_shape_beyond_memory_where_a_smaller_one_holds_the_rows(rows, length, slots, seen):
    own = round_rows(rows, slots) * bucket_length(length, LENGTHS)
    big = [Shape(64, LENGTHS[-1], 32), Shape(round_rows(rows, 16), LENGTHS[-1], 32)] if seen else []
    ladder = ShapeLadder(LENGTHS, big, PATIENCE, least_slots=16)
    ladder.most_tokens = own
    shape = ladder.fit(rows, length, 32, slots)
    assert shape.rows * shape.length <= own


def test_a_row_longer_than_every_bucket_is_refused():
    with pytest.raises(ValueError, match="given a row of 17 tokens"):
        ShapeLadder(LENGTHS).fit(1, 17, 1, 1)
