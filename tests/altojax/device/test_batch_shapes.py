import math

from hypothesis import given, settings
from hypothesis import strategies as st

from altojax.device.batch_shapes import HORIZON, REACH, WASTE, WORTH, Need, Shape, ShapeLadder, rounded

LENGTH = 16


def ladder_of(*seen: Shape, **kinds: float) -> ShapeLadder:
    ladder = ShapeLadder(LENGTH, **kinds)
    ladder.seen += seen
    return ladder


@given(st.integers(1, 5000))
def test_rounding_adds_an_eighth_at_most_and_leaves_few_counts(rows):
    assert rows <= rounded(rows) <= 9 / 8 * rows
    assert len({rounded(one) for one in range(1, rows + 1)}) <= 16 + 8 * math.log2(rows)


@settings(deadline=None)
@given(st.lists(st.builds(Need, st.integers(1, 60), st.integers(0, 400)), min_size=1))
def test_a_ladders_shapes_hold_what_they_are_for_at_a_bounded_price(needs):
    ladder = ladder_of()
    for need in needs:
        shape = ladder.fit(need)
        assert shape.holds(need) and shape.length == LENGTH and shape in ladder.seen
        assert shape.rows <= (1 + WASTE) * rounded(need.rows)
    assert len(set(ladder.seen)) == len(ladder.seen)


def test_a_ladder_takes_a_shape_again_and_a_resumed_one_takes_the_same():
    ladder = ladder_of()
    first = ladder.fit(Need(16, 40))
    assert ladder.fit(Need(15, 50)) == first and ladder.fit(Need(16, 64)) == first
    assert ladder_of(*ladder.seen).fit(Need(15, 33)) == first
    assert len(ladder.seen) == 1
    assert ladder.fit(Need(32, 40)) != first


batches = st.lists(st.builds(Need, st.integers(1, 32), st.integers(1, 64)), min_size=1, max_size=60)


@given(batches, st.integers(1, 2000), st.integers(0, 50))
def test_where_compiling_is_dear_shapes_are_made_ahead_and_the_smallest_that_holds_a_batch_is_taken(
    coming, price, step_tokens
):
    ladder = ladder_of(Shape(32, LENGTH, 64), compile_tokens=price, step_tokens=step_tokens)
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
    big, price = Shape(32, LENGTH, 64), 10_000
    ahead = [Need(8, 64)] * 5 + [Need(32, 64)] * 5 + [Need(1, 64)] * 4
    small, middle = Shape(1, LENGTH, 64), Shape(8, LENGTH, 64)
    worth = {middle: 9 * (512 - 128), small: 4 * (512 - 16)}
    assert max(worth, key=worth.__getitem__) == middle
    times = math.ceil(WORTH * price / worth[middle])

    def found(times: float, delay_tokens: int = 0) -> Shape | None:
        ladder = ladder_of(big, compile_tokens=price)
        ladder.look(ahead, times, delay_tokens)
        return ladder.soon()

    assert found(times) == middle and found(times - 1) is None
    assert found(2 * times, 2 * times * 512) == middle, "what goes by while it is compiled is not saved"
    assert found(2 * times, 2 * times * 512 * 9) == small, "only the last batches are left"


@given(batches, st.floats(0, 1))
def test_a_shape_is_worth_less_where_kernels_leave_out_what_a_batch_does_not_fill(needs, padding):
    big = Shape(32, LENGTH, 64)
    plain, skipping = ladder_of(big), ladder_of(big, padding=padding)
    for need in needs:
        own, cost = need.rows * LENGTH, skipping.cost(need, big)
        assert own <= cost <= plain.cost(need, big) == big.tokens
        assert abs((cost - own) - padding * (big.tokens - own)) <= 1
    price = sum(plain.cost(need, big) - need.rows * LENGTH for need in needs) + 1
    seen = [ladder_of(big, compile_tokens=price, padding=one) for one in (padding, 1.0)]
    for ladder in seen:
        ladder.look(needs, 1, 0)
    assert seen[0].soon() is None or seen[1].soon() is not None


def test_a_shape_that_is_coming_is_there_in_time_and_a_resumed_ladder_has_it_at_the_same_step():
    big, own, price = Shape(16, LENGTH, 64), Shape(12, LENGTH, 64), 1000
    one = Need(12, 40)
    ladder, resumed, taken = ladder_of(big, compile_tokens=price), None, []
    ladder.look([one] * 100, 1, price)
    assert ladder.soon() == own
    for step in range(8):
        if step == 2:
            resumed = ladder_of(*ladder.seen, compile_tokens=price)
            resumed.coming = ladder.coming
        taken.append(ladder.fit(one))
        ladder.passes(taken[-1].tokens)
        if resumed is not None:
            assert resumed.fit(one) == taken[-1]
            resumed.passes(taken[-1].tokens)
    other = ladder_of(big, compile_tokens=price)
    other.coming = own, 0
    other.seen.append(own)
    other.passes(price)
    assert other.seen == [big, own], "one that a batch had to have meanwhile is not there twice"
    waits = -(-price // big.tokens)
    assert taken == [big] * waits + [own] * (8 - waits) and ladder.soon() is None


def test_a_ladder_looks_far_enough_ahead_to_see_beyond_a_compilation():
    small = Shape(4, LENGTH, 64)
    assert ladder_of(small).reach() == HORIZON
    ladder = ladder_of(Shape(16, LENGTH, 64), small, compile_tokens=1_000_000, step_tokens=36)
    assert ladder.reach() == REACH * 10_000


def test_nothing_is_foreseen_where_compiling_is_cheap_or_while_a_shape_is_coming():
    big, ahead = Shape(16, LENGTH, 64), [Need(4, 40)] * 100
    cheap, busy = ladder_of(big), ladder_of(big, compile_tokens=100)
    busy.coming = Shape(8, LENGTH, 64), 50
    for ladder in (cheap, busy):
        ladder.look(ahead, 1, 0)
    assert cheap.soon() is None and busy.coming == (Shape(8, LENGTH, 64), 50)


@given(st.integers(1, 32), st.integers(0, 9), st.booleans(), st.sampled_from([0, 100]))
def test_a_ladder_never_takes_a_shape_beyond_memory_where_a_smaller_one_holds_the_rows(rows, more, seen, price):
    ladder = ladder_of(*([Shape(64, LENGTH, 32), Shape(rows + more + 1, LENGTH, 32)] if seen else []))
    ladder.compile_tokens, ladder.most_rows = price, rows + more
    ladder.look([Need(rows, 32)] * 100, 1, 0)
    assert (ladder.soon() or ladder.fit(Need(rows, 32))).rows <= rows + more
    assert ladder.fit(Need(rows, 32)).rows <= rows + more
