import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tiny import difference, make_executor, make_runner, tick

from altojax.device.batch import Part, lay_out, share_rows, shared_rows
from altojax.device.batch_shapes import Shape
from altojax.run.prepare import TextRow

pytestmark = pytest.mark.slow


@given(st.lists(st.integers(1, 16), min_size=1, max_size=12), st.integers(16, 40))
def test_texts_that_share_rows_fit_and_never_overlap(lengths, room):
    taken = set()
    for length, (row, first) in zip(lengths, share_rows(lengths, room), strict=True):
        own = {(row, first + i) for i in range(length)}
        assert first + length <= room and not own & taken
        taken |= own
    rows = 1 + max(row for row, _ in taken)
    assert rows <= len(lengths) and {row for row, _ in taken} == set(range(rows))


def test_each_slot_has_rows_of_its_own_and_each_text_its_own_positions_and_segment():
    texts = [TextRow(np.arange(1, n + 1, dtype=np.int32), np.arange(n) >= 2) for n in (5, 3, 4, 4)]
    parts = [Part(0, texts[:2], [7, 8], 1.0), Part(2, texts[2:], [9, 10], 1.0)]
    assert shared_rows(parts, 8) == 2 and shared_rows(parts, 7) == 4
    batch = lay_out(parts, Shape(4, 8, 32), 3, packed=False, shares=True)
    assert batch.tokens.tolist()[:2] == [[1, 2, 3, 4, 5, 1, 2, 3], [1, 2, 3, 4, 1, 2, 3, 4]]
    assert batch.positions.tolist()[:2] == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3]]
    assert batch.segments.tolist() == [[1] * 5 + [2] * 3, [1] * 4 + [2] * 4, [0] * 8, [0] * 8]
    assert batch.row_slots.tolist()[:2] == [0, 2]
    real = np.flatnonzero(batch.target_weight)
    # The state before a target predicts it: token n of a text follows token n - 1 of the same text.
    assert (batch.tokens.reshape(-1)[batch.target_at[real]] + 1).tolist() == batch.target_ids[real].tolist()


def unlike():
    return [make_runner(1, 4, 9, weight_decay=0.1), make_runner(2, 8, 1), make_runner(3, 2, 3, accumulation=2)]


@pytest.mark.parametrize("mesh", [None, {"adapter": 2, "tensor": 1, "data": 1}])
def test_rows_are_fewer_and_losses_and_adapters_the_same_when_texts_share_them(mesh, monkeypatch):
    monkeypatch.setattr(tiny, "ROWS", [row for row in tiny.ROWS if len(row.tokens) < 24])
    found = []
    for shares in (False, True):
        executor = make_executor(slots=4, rank=8, shares=shares, mesh=mesh)
        runners = unlike()
        for slot, runner in enumerate(runners):
            runner.enter(executor, slot)
        losses = [tick(executor, runners) for _ in range(2)]
        found.append((losses, [executor.take(one.slot, one.rank, one.keys) for one in runners]))
        rows = max(rows for rows, *_ in executor.programs.shapes()["shapes"]["train"])
        found[-1] += (rows,)
    (apart, adapters, rows), (together, shared, fewer) = found
    assert fewer < rows
    np.testing.assert_allclose(together, apart, rtol=0, atol=2e-6)
    assert difference(shared, adapters) <= 2e-5
