"""Rows of many trials become one batch in few shapes, and no trial sees its neighbours in what it gets."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altojax.device.batch import Part, Stream, eval_parts, lay_out, next_part, row_key
from altojax.device.batch_shapes import Shape, ShapeLadder
from altojax.device.sharding import Sharding
from jaxlm.data.batching.buckets import bucket_length
from jaxlm.data.batching.order import order
from jaxrun.process.errors import UserError

LENGTHS = (4, 6, 8, 12, 16)


@dataclass(frozen=True, eq=False)
class Text:
    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray | None = None
    segments: np.ndarray | None = None


def texts(count: int, seed: int = 0, longest: int = 12) -> list[Text]:
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(draw.integers(2, longest + 1))
        targets = draw.random(length) < 0.5
        targets[0], targets[-1] = False, True
        made.append(Text(draw.integers(1, 1000, length, np.int32), targets))
    return made


def micro_batches(slot: int, stream: Stream, seed: int, step: int) -> list[Part]:
    """All micro-batches of an optimizer step."""
    parts = [next_part(slot, stream, seed, step, 0)]
    while not parts[-1].apply:
        parts.append(next_part(slot, stream, seed, step, len(parts)))
    return parts


def fitted(parts: list[Part], slots: int) -> Shape:
    return ShapeLadder().fit(Sharding(None, slots).need(parts, LENGTHS, shares=False))


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 99), st.randoms(use_true_random=False))
def test_targets_gather_the_state_before_the_token_they_predict(sizes, seed, shuffler):
    slots = len(sizes) + 2
    parts = [Part(slot, texts(size, seed + slot), list(range(size)), 0.5 + slot) for slot, size in enumerate(sizes)]
    shape = fitted(parts, slots)
    expected = [
        (row, t, part.slot, part.weight)
        for row, (part, text) in enumerate((part, text) for part in parts for text in part.rows)
        for t in np.flatnonzero(text.targets)
    ]
    flat_rows = [(part, text, key) for part in parts for text, key in zip(part.rows, part.keys, strict=True)]
    shuffled = list(parts)
    shuffler.shuffle(shuffled)
    batch = lay_out(shuffled, shape, slots, packed=False)
    real = np.flatnonzero(batch.target_weight)
    at, t_before = np.divmod(batch.target_at[real], shape.length)
    found = zip(at, t_before + 1, batch.target_slots[real], batch.target_weight[real], strict=True)
    assert [tuple(map(float, one)) for one in found] == [tuple(map(float, one)) for one in expected]
    np.testing.assert_array_equal(batch.tokens[at, t_before + 1], batch.target_ids[real])
    np.testing.assert_array_equal(batch.row_slots[at], batch.target_slots[real])
    for row, (part, text, key) in enumerate(flat_rows):
        np.testing.assert_array_equal(batch.tokens[row, : len(text.tokens)], text.tokens)
        assert not batch.tokens[row, len(text.tokens) :].any()
        assert (batch.row_slots[row], batch.row_keys[row]) == (part.slot, key)
    assert (np.diff(batch.row_slots) >= 0).all() and batch.row_slots.size == shape.rows
    assert not batch.tokens[len(flat_rows) :].any()
    assert batch.positions is None and batch.segments is None


def test_a_batch_says_who_begins_and_who_applies():
    rows = texts(1)
    parts = [Part(3, rows, [7], 1.0, begin=True, apply=False), Part(1, rows, [8], 1.0, begin=False, apply=True)]
    batch = lay_out(parts, fitted(parts, 5), 5, packed=False)
    np.testing.assert_array_equal(batch.begin, [False, False, False, True, False])
    np.testing.assert_array_equal(batch.apply, [False, True, False, False, False])


def test_packed_rows_keep_positions_and_segments_and_plain_ones_get_their_own():
    plain, packed = texts(1)[0], texts(1, 1)[0]
    size = len(packed.tokens)
    segments = np.repeat([1, 2], [1, size - 1]).astype(np.int32)
    positions = np.concatenate([[0], np.arange(size - 1)]).astype(np.int32)
    parts = [Part(0, [plain, Text(packed.tokens, packed.targets, positions, segments)], [1, 2], 1.0)]
    batch = lay_out(parts, fitted(parts, 1), 1, packed=True)
    np.testing.assert_array_equal(batch.positions[1, :size], positions)
    np.testing.assert_array_equal(batch.segments[1, :size], segments)
    np.testing.assert_array_equal(batch.positions[0, : len(plain.tokens)], np.arange(len(plain.tokens)))
    assert (batch.segments[0, : len(plain.tokens)] == 1).all()
    assert not batch.segments[0, len(plain.tokens) :].any() and not batch.segments[1, size:].any()


streams = st.builds(
    Stream,
    st.integers(1, 9).map(texts),
    st.integers(0, 2**63),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 3),
)


@settings(deadline=None)
@given(streams)
def test_a_stream_meets_every_row_once_an_epoch_in_the_order_of_seed_and_epoch(stream):
    met = [row for step in range(stream.total_steps) for row in stream.effective_batch(step)]
    assert len(met) == stream.total_samples
    n = len(stream.rows)
    for epoch in range(-(-len(met) // n)):
        wanted = [stream.rows[i] for i in order(n, stream.seed, epoch)]
        mine = met[epoch * n : (epoch + 1) * n]
        assert all(one is other for one, other in zip(mine, wanted, strict=False)) and len(mine) <= n
    again = stream.effective_batch(0)
    assert all(one is other for one, other in zip(again, met, strict=False))


@settings(deadline=None)
@given(streams)
def test_micro_batches_cut_the_effective_batch_and_the_last_one_may_be_small(stream):
    full = stream.batch_size * stream.accumulation
    for step in range(stream.total_steps):
        effective = stream.effective_batch(step)
        last = step == stream.total_steps - 1
        assert len(effective) == (stream.total_samples - step * full if last else full)
        parts = micro_batches(0, stream, 5, step)
        count = -(-len(effective) // stream.batch_size)
        cut = [row for part in parts for row in part.rows]
        assert len(cut) == len(effective) and all(a is b for a, b in zip(cut, effective, strict=True))
        assert all(0 < len(part.rows) <= stream.batch_size for part in parts)
        assert len(parts) == count and [part.begin for part in parts] == [True] + [False] * (count - 1)
        assert [part.apply for part in parts] == [False] * (count - 1) + [True]
        assert [key for part in parts for key in part.keys] == [row_key(5, step, i) for i in range(len(effective))]
    assert stream.samples_after(stream.total_steps) == stream.samples_after(stream.total_steps + 1)


@settings(deadline=None)
@given(streams, streams)
def test_weights_of_a_slot_sum_to_one_over_its_effective_batch(one, other):
    total = np.zeros(3)
    for slot, stream in ((0, one), (2, other)):
        for part in micro_batches(slot, stream, 0, 0):
            batch = lay_out([part], fitted([part], 3), 3, packed=False)
            np.add.at(total, batch.target_slots, batch.target_weight)
    np.testing.assert_allclose(total, [1, 0, 1], rtol=1e-5)


def test_a_row_key_is_a_function_of_seed_step_and_row_and_of_each_of_them():
    keys = {(seed, step, row): row_key(seed, step, row) for seed in range(8) for step in range(12) for row in range(12)}
    assert len(set(keys.values())) == len(keys)
    assert all(0 <= key < 2**32 for key in keys.values())
    assert row_key(1, 2, 3) == 247416202  # BLAKE2b-32 of "1 2 3": the same in every process and version


def test_a_trials_part_does_not_depend_on_its_slot():
    stream = Stream(texts(7), 3, 20, 2, 2)
    one, two = next_part(0, stream, 5, 1, 1), next_part(6, stream, 5, 1, 1)
    assert (one.keys, one.weight, one.begin, one.apply) == (two.keys, two.weight, two.begin, two.apply)
    assert all(a is b for a, b in zip(one.rows, two.rows, strict=True))


@settings(deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(1, 6))
def test_evaluation_covers_every_row_of_every_slot_once(counts, rows_at_once):
    due = [(slot + 1, texts(count, slot)) for slot, count in enumerate(counts)]
    batches = eval_parts(due, rows_at_once)
    seen = [(part.slot, id(row)) for parts in batches for part in parts for row in part.rows]
    assert sorted(seen) == sorted((slot, id(row)) for slot, rows in due for row in rows)
    assert all(sum(len(part.rows) for part in parts) <= rows_at_once for parts in batches)
    assert len(batches) == -(-sum(counts) // rows_at_once)
    assert all(part.weight == 1 and len(part.keys) == len(part.rows) for parts in batches for part in parts)
    assert all(len({part.slot for part in parts}) == len(parts) for parts in batches)
    lengths = [sorted(len(row.tokens) for part in parts for row in part.rows) for parts in batches]
    assert all(a[-1] <= b[0] for a, b in itertools.pairwise(lengths))


def eval_tokens(batches: list[list[Part]], step_tokens: int) -> int:
    """What batches compute: rows times the bucket of the longest, and what each takes anyway."""
    buckets = [
        sum(len(part.rows) for part in parts)
        * bucket_length(max(len(row.tokens) for part in parts for row in part.rows), LENGTHS)
        for parts in batches
    ]
    return sum(buckets) + step_tokens * len(batches)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(2, 16)), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 60),
)
def test_short_rows_are_evaluated_apart_from_long_ones_only_where_that_takes_less(drawn, rows_at_once, price):
    due = [(slot, texts(count, slot, longest)) for slot, (count, longest) in enumerate(drawn)]
    together, apart = eval_parts(due, rows_at_once), eval_parts(due, rows_at_once, LENGTHS, price)
    seen = [(part.slot, id(row)) for parts in apart for part in parts for row in part.rows]
    assert sorted(seen) == sorted((slot, id(row)) for slot, rows in due for row in rows)
    assert all(sum(len(part.rows) for part in parts) <= rows_at_once for parts in apart)
    assert eval_tokens(apart, price) <= eval_tokens(together, price)


def test_rows_of_18_tokens_are_not_evaluated_at_the_250_of_another_task():
    row = [Text(np.ones(size, np.int32), np.arange(size) > 0) for size in (18, 74, 250)]
    due = [(slot, [one] * 5) for slot, one in enumerate(row)]
    lengths = (32, 96, 250)
    slots = {price: [[part.slot for part in one] for one in eval_parts(due, 16, lengths, price)] for price in (9, 400)}
    assert slots == {9: [[0], [1], [2]], 400: [[0, 1], [2]]}, "five rows of 32 at 96 are 320 tokens of padding"
    assert len(eval_parts(due, 16, lengths, 5000)) == 1


def test_a_step_that_has_nothing_to_learn_is_one_line():
    """Beyond the end of a schedule, or of rows without a target."""
    blank = [Text(row.tokens, np.zeros_like(row.targets)) for row in texts(4)]
    for rows, step, said in ((texts(4), 8, "step 9 of 4: 0 rows"), (blank, 1, "step 2 of 4: 2 rows")):
        with pytest.raises(UserError, match=f"{said} without a target"):
            next_part(0, Stream(rows, 0, 8, 2, 1), 0, step, 0)
