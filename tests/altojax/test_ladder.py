import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altojax.ladder import FORESEEN, Shape, ShapeLadder, round_rows
from backbone.data import bucket_length

LENGTHS = (4, 6, 8, 12, 16)


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


@given(
    st.lists(st.tuples(st.integers(1, 32), st.integers(1, LENGTHS[-1]), st.integers(1, 64)), min_size=1, max_size=60),
    st.integers(1, 2000),
    st.integers(0, 50),
)
def test_where_compiling_is_dear_a_shape_that_another_could_replace_had_time_to_compile(requests, price, step_tokens):
    ladder = ShapeLadder(LENGTHS, compile_tokens=price, step_tokens=step_tokens)
    begun, spent, met = {}, 0, []
    for rows, length, targets in requests:
        shapes = list(ladder.seen)
        shape = ladder.fit(rows, length, targets, 16)
        assert rows <= shape.rows and length <= shape.length and targets <= shape.targets
        holding = [one for one in shapes if one.rows >= rows and one.length >= length and one.targets >= targets]
        had = min((one.rows * one.length for one in holding), default=0)
        met.append((rows, length, had))
        assert shape.rows * shape.length <= (had or shape.rows * shape.length)
        if holding and len(ladder.seen) > len(shapes):
            saved = [had - shape.rows * shape.length for r, n, had in met if r <= shape.rows and n <= shape.length]
            assert spent - begun[shape] >= price and sum(max(0, one) for one in saved) >= FORESEEN * price
        elif ladder.coming is not None and ladder.coming[1] == 0:
            begun[ladder.coming[0]] = spent
            continue
        spent += shape.rows * shape.length + step_tokens
    assert len(set(ladder.seen)) == len(ladder.seen)


def test_a_shape_is_foreseen_then_made_and_a_resumed_ladder_makes_it_at_the_same_step():
    big = Shape(16, LENGTHS[-1], 64)
    missed = 16 * (LENGTHS[-1] - LENGTHS[-2])
    price, resumed, taken, foreseen = 10 * missed, None, [], []
    ladder = ShapeLadder(LENGTHS, [big], compile_tokens=price)
    for step in range(8):
        if step == 2:
            resumed = ShapeLadder(LENGTHS, ladder.seen, compile_tokens=price)
            resumed.missed, resumed.coming = dict(ladder.missed), ladder.coming
        taken.append(ladder.fit(16, LENGTHS[-2], 40, 16))
        foreseen.append(ladder.soon())
        if resumed is not None:
            assert resumed.fit(16, LENGTHS[-2], 40, 16) == taken[-1]
    own, waits = Shape(16, LENGTHS[-2], 64), 1 + -(-price // (16 * LENGTHS[-1]))
    assert taken == [big] * waits + [own] * (8 - waits)
    assert foreseen == [own] * waits + [None] * (8 - waits)


def test_a_foreseen_shape_that_no_batch_wants_any_more_is_given_up():
    ladder = ShapeLadder(LENGTHS, [Shape(16, LENGTHS[-1], 64)], compile_tokens=64)
    ladder.fit(16, LENGTHS[-2], 40, 16)
    assert ladder.soon() is not None
    while ladder.soon() is not None:
        ladder.fit(16, LENGTHS[-1], 40, 16)
    assert len(ladder.seen) == 1 and not ladder.missed


@given(st.integers(1, 32), st.integers(1, LENGTHS[-1]), st.integers(1, 16), st.booleans())
def test_a_ladder_never_takes_a_shape_beyond_memory_where_a_smaller_one_holds_the_rows(rows, length, slots, seen):
    own = round_rows(rows, slots) * bucket_length(length, LENGTHS)
    big = [Shape(64, LENGTHS[-1], 32), Shape(round_rows(rows, 16), LENGTHS[-1], 32)] if seen else []
    ladder = ShapeLadder(LENGTHS, big, compile_tokens=100)
    ladder.most_tokens = own
    shape = ladder.fit(rows, length, 32, slots)
    assert shape.rows * shape.length <= own


def test_a_row_longer_than_every_bucket_is_refused():
    with pytest.raises(ValueError, match="given a row of 17 tokens"):
        ShapeLadder(LENGTHS).fit(1, 17, 1, 1)
