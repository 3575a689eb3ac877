"""Orders, row lengths and packed rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.batching.buckets import bucket_length, default_buckets
from jaxlm.data.batching.order import order
from jaxlm.data.batching.packing import pack
from jaxlm.data.documents import Text
from jaxlm.data.examples import Example

SEEDS = st.integers(0, 2**64 - 1)


@given(n=st.integers(0, 300), seed=SEEDS, epoch=SEEDS)
def test_an_order_is_a_permutation_and_always_the_same(n, seed, epoch):
    rows = order(n, seed, epoch)
    assert rows.dtype == np.int64
    assert sorted(rows.tolist()) == list(range(n))
    assert (rows == order(n, seed, epoch)).all()


def philox(counter, key):
    """Philox-4x64-10 in plain integers (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")."""
    mask = 2**64 - 1
    words, (low, high) = [counter, 0, 0, 0], key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [second >> 64 ^ words[1] ^ low, second & mask, first >> 64 ^ words[3] ^ high, first & mask]
        low, high = low + 0x9E3779B97F4A7C15 & mask, high + 0xBB67AE8584CAA73B & mask
    return words


@given(n=st.integers(0, 40), seed=SEEDS, epoch=SEEDS)
def test_an_order_is_made_of_nothing_but_philox_words(n, seed, epoch):
    words = [word for counter in range(1, 12) for word in philox(counter, (seed, epoch))]
    assert order(n, seed, epoch).tolist() == sorted(range(n), key=lambda row: words[row])


def test_orders_are_the_same_on_every_machine():
    assert order(10, 0, 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert order(10, 42, 3).tolist() == [1, 6, 3, 4, 5, 9, 2, 8, 0, 7]


@given(seed=SEEDS, epoch=st.integers(0, 2**63))
def test_seeds_and_epochs_give_other_orders(seed, epoch):
    here = order(50, seed, epoch)
    assert (here != order(50, seed, epoch + 1)).any()
    assert (here != order(50, seed ^ 1, epoch)).any()


def test_every_row_comes_first_about_equally_often():
    first = np.bincount([order(8, seed, epoch)[0] for seed in range(40) for epoch in range(50)], minlength=8)
    assert first.sum() == 2000
    assert abs(first - 250).max() < 75  # five standard deviations


@pytest.mark.parametrize("arguments", [(-1, 0, 0), (3, -1, 0), (3, 0, -1), (3, 2**64, 0)])
def test_an_order_needs_sensible_numbers(arguments):
    with pytest.raises(ValueError, match="expected none below 0"):
        order(*arguments)


@given(longest=st.integers(1, 5000), n=st.integers(1, 5000))
def test_a_bucket_is_the_shortest_that_fits_and_pads_little(longest, n):
    buckets = default_buckets(longest)
    assert list(buckets) == sorted(set(buckets))
    assert buckets[-1] == longest
    if n > longest:
        with pytest.raises(ValueError, match=f"given a row of {n} tokens, expected at most {longest}"):
            bucket_length(n, buckets)
        return
    length = bucket_length(n, buckets)
    assert length in buckets
    assert length >= n
    assert not any(n <= other < length for other in buckets)
    assert length < 1.5 * n or length == buckets[0]


def test_the_ladder_of_buckets():
    assert default_buckets(1024) == (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
    assert default_buckets(100) == (32, 48, 64, 96, 100)
    assert default_buckets(20) == (20,)
    with pytest.raises(ValueError, match="at least 1"):
        default_buckets(0)


def document(n, seed=0):
    random = np.random.default_rng(seed)
    return Example(random.integers(1, 99, n).astype(np.int32), random.random(n) < 0.5, 1, "a", Text("x"))


DOCUMENTS = st.lists(st.integers(1, 16), max_size=40).map(
    lambda lengths: [document(n, seed) for seed, n in enumerate(lengths)]
)


@settings(deadline=None)
@given(documents=DOCUMENTS, length=st.integers(16, 40))
def test_packing_keeps_every_document_whole_and_apart(documents, length):
    rows = pack(documents, length)
    assert sorted(member for row in rows for member in row.members) == list(range(len(documents)))
    for row in rows:
        assert row.tokens.shape == row.targets.shape and len(row.tokens) <= length
        assert (row.tokens.dtype, row.targets.dtype) == (np.int32, np.bool_)
        start = 0
        for begin, member in zip(row.begins, row.members, strict=True):
            example = documents[member]
            here = slice(start, start + len(example.tokens))
            assert begin == start
            assert (row.tokens[here] == example.tokens).all()
            assert not row.targets[start]
            assert (row.targets[here][1:] == example.targets[1:]).all()
            start = here.stop
        assert start == len(row.tokens)


@settings(deadline=None)
@given(documents=DOCUMENTS, length=st.integers(16, 40))
def test_packing_is_first_fit(documents, length):
    rows: list[list[int]] = []
    for member, example in enumerate(documents):
        sizes = [sum(len(documents[other].tokens) for other in row) for row in rows]
        fits = [row for row, size in zip(rows, sizes, strict=True) if size + len(example.tokens) <= length]
        (fits[0] if fits else rows.append([]) or rows[-1]).append(member)
    assert [list(row.members) for row in pack(documents, length)] == rows


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="17 tokens, expected at most 16"):
        pack([document(17)], 16)
