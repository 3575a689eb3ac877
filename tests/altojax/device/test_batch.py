"""Rows of many trials become one batch in few shapes, and no trial sees its neighbours in what it gets."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altojax.device.batch import Batch, Part, Stream, eval_parts, lay_out, need_of, next_part, row_key, tokens_of
from altojax.device.batch_shapes import Shape, ShapeLadder
from altojax.device.sharding import Sharding
from jaxlm.data.batching.order import order
from jaxlm.data.batching.row_layout import RowGeometry
from jaxrun.process.errors import UserError
from pallas_kernels import token_seeds

ROWS = RowGeometry(24, 4, 6)


@dataclass(frozen=True, eq=False)
class Text:
    tokens: np.ndarray
    targets: np.ndarray
    begins: tuple[int, ...] = (0,)


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


def fitted(parts: list[Part]) -> Shape:
    return ShapeLadder(ROWS.length).fit(Sharding(None, 9).need(parts, ROWS))


def laid(parts: list[Part], slots: int, *, drops: bool = False) -> Batch:
    return lay_out(parts, fitted(parts), slots, ROWS, drops=drops)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 99), st.randoms(use_true_random=False))
def test_targets_gather_the_state_before_the_token_they_predict_in_a_tile_of_their_slot(sizes, seed, shuffler):
    slots = len(sizes) + 2
    parts = [Part(slot, texts(size, seed + slot), list(range(size)), 0.5 + slot) for slot, size in enumerate(sizes)]
    shuffled = list(parts)
    shuffler.shuffle(shuffled)
    batch = laid(shuffled, slots)
    real = np.flatnonzero(batch.target_weight)
    expected = [
        (number, part.slot, part.weight, int(text.tokens[t]), int(text.tokens[t - 1]))
        for number, (part, text) in enumerate((part, text) for part in parts for text in part.rows)
        for t in np.flatnonzero(text.targets)
    ]
    at = batch.target_at[real]
    before = batch.tokens.reshape(-1)[at]
    found = zip(
        batch.target_rows[real],
        batch.target_slots[real],
        batch.target_weight[real],
        batch.target_ids[real],
        before,
        strict=True,
    )
    assert [tuple(map(float, one)) for one in found] == [tuple(map(float, one)) for one in expected]
    np.testing.assert_array_equal(batch.tokens.reshape(-1)[at + 1], batch.target_ids[real])
    np.testing.assert_array_equal(batch.tile_slots[at // ROWS.tile], batch.target_slots[real])
    np.testing.assert_array_equal(batch.row_slots[batch.target_rows[real]], batch.target_slots[real])
    assert ((batch.tile_slots >= 0) & (batch.tile_slots < slots)).all()


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 99))
def test_each_text_is_whole_begins_where_the_batch_says_and_pads_what_follows(sizes, seed):
    parts = [Part(slot, texts(size, seed + slot), [7] * size, 1.0) for slot, size in enumerate(sizes)]
    batch = laid(parts, len(sizes))
    assert (np.diff(batch.begins) >= 0).all() and not batch.begins[:, 0].any()
    wanted = sorted(text.tokens.tolist() for part in parts for text in part.rows)
    found = []
    for row, begins, lengths in zip(batch.tokens, batch.begins, batch.sizes, strict=True):
        ends = [*begins[1:], ROWS.length]
        for begin, end, length in zip(begins, ends, lengths, strict=True):
            text = row[begin:end]
            assert length == len(np.trim_zeros(text, "b"))
            found.append(np.trim_zeros(text, "b").tolist())
            assert len(text) - len(found[-1]) < ROWS.tile or not row[end:].any(), "padding is the end of a tile or row"
    assert sorted(one for one in found if one) == wanted


def test_a_batch_says_who_begins_and_who_applies():
    rows = texts(1)
    parts = [Part(3, rows, [7], 1.0, begin=True, apply=False), Part(1, rows, [8], 1.0, begin=False, apply=True)]
    batch = laid(parts, 5)
    np.testing.assert_array_equal(batch.begin, [False, False, False, True, False])
    np.testing.assert_array_equal(batch.apply, [False, True, False, False, False])


def test_tiles_that_hold_nothing_belong_to_the_slot_before_them_and_empty_rows_to_the_last():
    parts = [Part(2, [Text(np.ones(5, np.int32), np.arange(5) > 0)], [1], 1.0)]
    batch = lay_out(parts, Shape(2, 24, 32), 4, ROWS, drops=False)
    assert batch.tile_slots.tolist() == [2] * 12
    parts.append(Part(3, [Text(np.ones(9, np.int32), np.arange(9) > 0)], [1], 1.0))
    batch = lay_out(parts, Shape(2, 24, 32), 4, ROWS, drops=False)
    assert batch.tile_slots.tolist() == [2, 2, 3, 3, 3, 3] + [3] * 6
    assert batch.begins.tolist() == [[0, 8, 24, 24, 24, 24], [0, 24, 24, 24, 24, 24]]


def test_packed_rows_keep_their_texts_and_a_seed_of_dropout_does_not_depend_on_where_a_row_lies():
    plain, packed = texts(1)[0], Text(np.arange(1, 11, dtype=np.int32), np.arange(10) > 4, (0, 4))
    beside = laid([Part(0, [plain, packed], [1, 2], 1.0)], 1, drops=True)
    alone = laid([Part(0, [packed], [2], 1.0)], 1, drops=True)
    assert alone.begins[0].tolist() == [0, 4, 24, 24, 24, 24] and alone.sizes[0].tolist() == [4, 6, 0, 0, 0, 0]
    at = int(np.flatnonzero(beside.tokens[0] == packed.tokens[0])[0])
    assert {at, at + 4} <= set(beside.begins[0].tolist())
    np.testing.assert_array_equal(beside.token_seeds[0, at : at + 10], alone.token_seeds[0, :10])
    np.testing.assert_array_equal(alone.token_seeds[0, :10], token_seeds(2, 10))
    assert laid([Part(0, [packed], [2], 1.0)], 1).token_seeds is None


def test_the_tokens_of_a_part_are_those_of_its_tiles():
    rows = [Text(np.ones(size, np.int32), np.arange(size) > 0) for size in (3, 2, 9, 20)]
    assert tokens_of(Part(0, rows[:1], [1], 1.0), ROWS) == 4
    assert tokens_of(Part(0, rows[:2], [1, 1], 1.0), ROWS) == 8
    assert tokens_of(Part(0, rows, [1] * 4, 1.0), ROWS) == 24 + 12
    assert tokens_of(Part(0, [], [], 1.0), ROWS) == 0


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
            batch = laid([part], 3)
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
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(1, 4))
def test_evaluation_covers_every_row_of_every_slot_once(counts, most_rows):
    due = [(slot + 1, texts(count, slot)) for slot, count in enumerate(counts)]
    batches = eval_parts(due, ROWS, most_rows)
    seen = [(part.slot, id(row)) for parts in batches for part in parts for row in part.rows]
    assert sorted(seen) == sorted((slot, id(row)) for slot, rows in due for row in rows)
    assert all(need_of(parts, ROWS)[0] <= most_rows for parts in batches)
    assert all(part.weight == 1 and len(part.keys) == len(part.rows) for parts in batches for part in parts)
    assert all(len({part.slot for part in parts}) == len(parts) for parts in batches)


def test_a_step_that_has_nothing_to_learn_is_one_line():
    """Beyond the end of a schedule, or of rows without a target."""
    blank = [Text(row.tokens, np.zeros_like(row.targets)) for row in texts(4)]
    for rows, step, said in ((texts(4), 8, "step 9 of 4: 0 rows"), (blank, 1, "step 2 of 4: 2 rows")):
        with pytest.raises(UserError, match=f"{said} without a target"):
            next_part(0, Stream(rows, 0, 8, 2, 1), 0, step, 0)
