"""Texts in rows that owners share: all fit, none overlaps, no tile is of two, and little is left over."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.batching.row_layout import RowGeometry, cut, geometry_of, lay

GEOMETRY = RowGeometry(24, 4, 5)
text_sizes = st.tuples(st.integers(1, 24), st.integers(1, 2))
batches = st.lists(st.lists(text_sizes, max_size=6).map(tuple), min_size=1, max_size=5).map(tuple)


@settings(deadline=None)
@given(batches)
def test_every_text_has_its_place_and_no_tile_is_of_two_trials(sizes):
    rows, places = lay(GEOMETRY, sizes)
    taken, owners, texts = set(), {}, np.zeros(rows + 1, int)
    for owner, (own, mine) in enumerate(zip(sizes, places, strict=True)):
        for (tokens, count), (row, first) in zip(own, mine, strict=True):
            cells = {(row, first + i) for i in range(tokens)}
            assert 0 <= row < rows and first + tokens <= GEOMETRY.length and not cells & taken
            taken |= cells
            texts[row] += count
            for tile in {(row, at // GEOMETRY.tile) for _, at in cells}:
                assert owners.setdefault(tile, owner) == owner
    assert (texts <= GEOMETRY.texts).all()
    assert {row for row, _ in taken} == set(range(rows))
    assert rows <= sum(len(own) for own in sizes)


def test_short_texts_of_a_trial_share_tiles_and_trials_share_rows():
    rows, places = lay(GEOMETRY, (((3, 1), (5, 1)), ((1, 1),), ((12, 1),)))
    assert rows == 1
    assert places == (((0, 5), (0, 0)), ((0, 8),), ((0, 12),))


def test_a_row_holds_no_more_texts_than_it_may():
    assert lay(GEOMETRY, (((1, 1),) * 11,))[0] == 3
    assert lay(GEOMETRY, (((1, 4), (1, 2)),))[0] == 2


def test_a_run_of_usual_texts_leaves_a_seventh_over_at_most():
    """Lengths as those of GSM8K's rows: trials of 1, 2, 4 and 8 rows, four of each, in rows of 512."""
    draw = np.random.default_rng(0)
    drawn = np.clip(np.round(draw.gamma(7.0, 165 / 7.0, 4000)), 60, 383).astype(int)
    geometry = geometry_of([drawn.tolist()], 1, tile=16, least=512)
    text = computed = 0
    for step in range(20):
        sizes = [drawn[step * 60 + at : step * 60 + at + n] for at, n in enumerate([8, 4, 2, 1] * 4)]
        rows, _ = lay(geometry, tuple(tuple((int(one), 1) for one in own) for own in sizes))
        text, computed = text + sum(int(own.sum()) for own in sizes), computed + rows * geometry.length
    assert computed / text < 8 / 7


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 9), st.lists(text_sizes, max_size=8), max_size=4), st.integers(1, 4))
def test_batches_hold_every_text_once_and_are_laid_into_as_many_rows_as_they_may_have(sizes, most):
    found = cut(GEOMETRY, sizes, most)
    met = sorted((owner, text) for batch in found for owner, texts in batch.items() for text in texts)
    assert met == sorted((owner, text) for owner, own in sizes.items() for text in range(len(own)))
    for batch in found:
        assert all(texts == sorted(texts) and texts for texts in batch.values())
        assert (
            lay(GEOMETRY, tuple(tuple(sizes[owner][text] for text in texts) for owner, texts in batch.items()))[0]
            <= most
        )


@settings(deadline=None)
@given(st.lists(text_sizes, max_size=8), st.integers(1, 3))
def test_texts_of_a_group_stay_in_one_batch_even_where_they_take_more_rows(drawn, most):
    pairs = [size for size in drawn for _ in range(2)]
    found = cut(GEOMETRY, {3: pairs}, most, 2)
    assert sorted(text for batch in found for text in batch[3]) == list(range(len(pairs)))
    for batch in found:
        assert all(a % 2 == 0 and b == a + 1 for a, b in zip(batch[3][::2], batch[3][1::2], strict=True))
        rows, _ = lay(GEOMETRY, (tuple(pairs[text] for text in batch[3]),), 2)
        assert rows <= max(most, 2)


def test_rows_hold_the_longest_text_of_any_task_and_as_many_as_the_task_of_the_shortest_has():
    geometry = geometry_of([[100, 300], [20, 30]], 1, tile=128, least=256)
    assert geometry == RowGeometry(384, 128, round(1.25 * 384 / 25))
    assert geometry_of([[500]], 9, tile=16, least=128) == RowGeometry(512, 16, 9)
    assert geometry_of([[7]], 1, tile=16, least=8).length == 16
