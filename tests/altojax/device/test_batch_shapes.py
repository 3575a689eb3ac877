import math

from hypothesis import given, settings
from hypothesis import strategies as st

from altojax.device.batch_shapes import HORIZON, REACH, WORTH, Need, Shape, ShapeLadder, round_rows
from jaxlm.data.batching.buckets import bucket_length

LENGTHS = (4, 6, 8, 12, 16)


@given(st.integers(1, 500), st.integers(0, 64))
def test_rounding_adds_fewer_rows_than_slots(rows, slots):
    rounded = round_rows(rows, slots)
    assert rows <= rounded < rows + max(slots, 1)


@given(st.integers(1, 64))
def test_few_row_counts_are_left_after_rounding(slots):
    """Any multiple of `slots` rows up to 4 · slots comes to at most eight counts, whatever is parked."""
    assert len({round_rows(rows, slots) for rows in range(1, 4 * slots + 1)}) <= 8


def need(rows: int, length: int, targets: int, slots: int) -> Need:
    """What a batch needs whose texts share no rows."""
    return Need({one: rows for one in LENGTHS if one >= length}, targets, slots)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, LENGTHS[-1]), st.integers(0, 400), st.integers(1, 16)), min_size=1
    )
)
def test_a_ladders_shapes_hold_what_they_are_for_at_a_bounded_price(requests):
    ladder = ShapeLadder()
    for rows, length, targets, slots in requests:
        shape = ladder.fit(need(rows, length, targets, slots))
        assert rows <= shape.rows < rows + max(slots, 1)
        assert length <= shape.length and shape.length in LENGTHS
        assert targets <= shape.targets
        own = round_rows(rows, slots) * bucket_length(length, LENGTHS)
        assert 8 * shape.tokens <= 9 * own
        assert shape in ladder.seen
    assert len(set(ladder.seen)) == len(ladder.seen)


def test_a_ladder_takes_a_shape_again_and_a_resumed_one_takes_the_same():
    ladder = ShapeLadder()
    first = ladder.fit(need(16, 8, 40, 8))
    assert ladder.fit(need(15, 8, 50, 8)) == first and ladder.fit(need(16, 7, 64, 8)) == first
    assert ShapeLadder(ladder.seen).fit(need(15, 7, 33, 8)) == first
    assert len(ladder.seen) == 1
    assert ladder.fit(need(32, 8, 40, 8)) != first


batches = st.lists(
    st.builds(need, st.integers(1, 32), st.integers(1, LENGTHS[-1]), st.integers(1, 64), st.just(16)),
    min_size=1,
    max_size=60,
)


@given(batches, st.integers(1, 2000), st.integers(0, 50))
def test_where_compiling_is_dear_shapes_are_made_ahead_and_the_smallest_that_holds_a_batch_is_taken(
    coming, price, step_tokens
):
    ladder = ShapeLadder([Shape(32, LENGTHS[-1], 64)], compile_tokens=price, step_tokens=step_tokens)
    begun = spent = 0
    for i, one in enumerate(coming):
        if ladder.soon() is None:
            begun, shapes = spent, list(ladder.seen)
            ladder.look(coming[i:], 1, price)
            assert ladder.seen == shapes
        shape = ladder.fit(one)
        assert shape.tokens == min(had.tokens for had in ladder.seen if had.holds(one))
        had = len(ladder.seen)
        spent += shape.tokens + step_tokens
        ladder.passes(shape.tokens + step_tokens)
        assert len(ladder.seen) == had or (spent - begun >= price and ladder.soon() is None)
    assert len(set(ladder.seen)) == len(ladder.seen)


def test_the_shape_that_saves_the_coming_batches_most_is_foreseen_if_it_is_worth_its_compilation():
    big, price = Shape(32, LENGTHS[-1], 64), 10_000
    ahead = [need(16, 8, 64, 16)] * 5 + [need(32, 16, 64, 16)] * 5 + [need(4, 4, 64, 16)] * 4
    small, middle = Shape(4, 4, 64), Shape(16, 8, 64)
    worth = {middle: 5 * (512 - 128) + 4 * (512 - 128), small: 4 * (512 - 16)}
    assert max(worth, key=worth.__getitem__) == middle
    times = math.ceil(WORTH * price / worth[middle])

    def found(times: float, delay_tokens: int = 0) -> Shape | None:
        ladder = ShapeLadder([big], compile_tokens=price)
        ladder.look(ahead, times, delay_tokens)
        return ladder.soon()

    assert found(times) == middle and found(times - 1) is None
    assert found(2 * times, 2 * times * 512) == middle, "what goes by while it is compiled is not saved"
    assert found(2 * times, 2 * times * 512 * 9) == small, "only the last batches are left"


def test_a_shape_that_is_coming_is_there_in_time_and_a_resumed_ladder_has_it_at_the_same_step():
    big, own, price = Shape(16, LENGTHS[-1], 64), Shape(16, LENGTHS[-2], 64), 1000
    one = need(16, LENGTHS[-2], 40, 16)
    ladder, resumed, taken = ShapeLadder([big], compile_tokens=price), None, []
    ladder.look([one] * 100, 1, price)
    assert ladder.soon() == own
    for step in range(8):
        if step == 2:
            resumed = ShapeLadder(ladder.seen, compile_tokens=price)
            resumed.coming = ladder.coming
        taken.append(ladder.fit(one))
        ladder.passes(taken[-1].tokens)
        if resumed is not None:
            assert resumed.fit(one) == taken[-1]
            resumed.passes(taken[-1].tokens)
    other = ShapeLadder([big], compile_tokens=price)
    other.coming = own, 0
    other.seen.append(own)
    other.passes(price)
    assert other.seen == [big, own], "one that a batch had to have meanwhile is not there twice"
    waits = -(-price // big.tokens)
    assert taken == [big] * waits + [own] * (8 - waits) and ladder.soon() is None


def test_a_ladder_looks_far_enough_ahead_to_see_beyond_a_compilation():
    small = Shape(4, 16, 64)
    assert ShapeLadder([small]).reach() == HORIZON
    ladder = ShapeLadder([Shape(16, 16, 64), small], compile_tokens=1_000_000, step_tokens=36)
    assert ladder.reach() == REACH * 10_000


def test_nothing_is_foreseen_where_compiling_is_cheap_or_while_a_shape_is_coming():
    big, ahead = Shape(16, LENGTHS[-1], 64), [need(4, 4, 40, 4)] * 100
    cheap, busy = ShapeLadder([big]), ShapeLadder([big], compile_tokens=100)
    busy.coming = Shape(8, 8, 64), 50
    for ladder in (cheap, busy):
        ladder.look(ahead, 1, 0)
    assert cheap.soon() is None and busy.coming == (Shape(8, 8, 64), 50)


@given(st.integers(1, 32), st.integers(1, LENGTHS[-1]), st.integers(1, 16), st.booleans())
def test_a_ladder_never_takes_a_shape_beyond_memory_where_a_smaller_one_holds_the_rows(rows, length, slots, seen):
    own = round_rows(rows, slots) * bucket_length(length, LENGTHS)
    big = [Shape(64, LENGTHS[-1], 32), Shape(round_rows(rows, 16), LENGTHS[-1], 32)] if seen else []
    ladder = ShapeLadder(big, compile_tokens=100)
    ladder.most_tokens = own
    ladder.look([need(rows, length, 32, slots)] * 100, 1, 0)
    assert (ladder.soon() or ladder.fit(need(rows, length, 32, slots))).tokens <= own
    assert ladder.fit(need(rows, length, 32, slots)).tokens <= own
