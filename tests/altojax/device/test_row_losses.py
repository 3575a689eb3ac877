"""The loss of each row in batches is that of the row alone, on every mesh."""

import numpy as np
import pytest
from tiny import ROWS, heterogeneous, shared_executor

BOUND = 2e-5  # sums over 8 targets of losses in float32, in batches of other shapes (test_solo_law.py)
MESHES = {"2x2 and 2 replicas": {"adapter": 2, "tensor": 2, "data": 2}, "8": {"adapter": 8}}
SLOTS = (0, 5, 3, 6)


def filled(mesh=None):
    executor = shared_executor(8, 8, mesh)
    for runner, slot in zip(heterogeneous(), SLOTS, strict=True):
        snapshot = runner.snapshot
        for pair in snapshot["adapters"].values():
            pair["b"] = np.random.default_rng(slot).normal(0, 0.1, pair["b"].shape).astype(np.float32)
        executor.put(slot, snapshot, runner.hyper)
    return executor


def one_by_one(executor, rows):
    """The mean loss of a row alone in its slot, times its targets."""
    found = {slot: [] for slot in SLOTS}
    for row in rows:
        for slot in SLOTS:
            found[slot].append(executor.evaluate([(slot, [row])], 1)[slot] * int(row.targets.sum()))
    return found


def test_rows_in_batches_have_the_losses_of_rows_one_by_one():
    executor, rows = filled(), ROWS[:9]
    alone = one_by_one(executor, rows)
    together = executor.row_losses([(slot, rows[: 4 + slot]) for slot in SLOTS], 4)
    for slot in SLOTS:
        np.testing.assert_allclose(together[slot], alone[slot][: 4 + slot], atol=BOUND, rtol=0)
    assert len({round(alone[slot][0], 3) for slot in SLOTS}) == len(SLOTS), "the slots hold different adapters"


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES.keys())
def test_a_mesh_returns_them_in_the_order_of_the_rows(mesh):
    due = [(slot, ROWS[slot : slot + 7]) for slot in SLOTS]
    here, there = (filled(one).row_losses(due, 4) for one in (None, mesh))
    for slot in SLOTS:
        np.testing.assert_allclose(there[slot], here[slot], atol=BOUND, rtol=0)
