"""One trial that is not finite, on every mesh: all others get the same bits as beside a healthy neighbour."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny import ROWS, Runner, difference, make_runner, shared_executor

from altojax.device.batch import next_part
from altojax.device.executor import Executor
from altojax.device.objectives.rows import TextRow

pytestmark = pytest.mark.slow

MESHES = {"one device": None, "2x2 and 2 replicas": {"adapter": 2, "tensor": 2, "data": 2}}
"""Whatever crosses between devices does so on a mesh of all axes."""
SLOTS = (0, 1, 2, 4, 5)
"""Beside neighbours in one group, and in another; a batch of one row leaves a replica without any of it."""
IDLE = 3
"""In this slot a trial waits: nobody steps it."""
TICKS = 3


def packed(rows: list[TextRow]) -> list[TextRow]:
    """Rows that hold two texts each."""
    made = []
    for row in rows:
        size, first = len(row.tokens), len(row.tokens) // 2
        made.append(TextRow(row.tokens, row.targets & (np.arange(size) != first), (0, first)))
    return made


PLACED = (ROWS, packed(ROWS))
"""Rows of every other trial are packed: plain ones lie beside such, and either kind beside its own."""


def trials() -> list[Runner]:
    """One row at a time, several, and some that gather gradients; and one that waits."""
    kinds = [(1, 1), (2, 1), (1, 3), (3, 1), (1, 2)]
    running = [
        make_runner(seed, 4, batch, accumulation=count, dropout=0.1 * (seed % 2))
        for seed, (batch, count) in enumerate(kinds, start=1)
    ]
    return [*running, make_runner(9, 4, 1)]


def poisoned(runner: Runner, value: float) -> Runner:
    adapters = jax.tree.map(lambda array: np.full_like(array, value), runner.snapshot["adapters"])
    return replace(runner, snapshot={**runner.snapshot, "adapters": adapters})


def run(executor: Executor, sick: int | None, value: float) -> list[tuple]:
    """What every trial gets: its losses, its validation loss, and what is in its slot in the end."""
    runners = trials()
    if sick is not None:
        runners[sick] = poisoned(runners[sick], value)
    for slot, runner in zip((*SLOTS, IDLE), runners, strict=True):
        runner.enter(executor, slot)
    losses: list[list[float]] = []
    for _ in range(TICKS):
        parts = []
        for number, one in enumerate(runners[:-1]):
            stream = replace(one.stream, rows=PLACED[number % 2])
            parts.append(next_part(one.slot, stream, one.seed, one.step, one.micro))
            one.micro = 0 if parts[-1].apply else one.micro + 1
            one.step += int(parts[-1].apply)
        losses.append(np.asarray(executor.train(parts).loss)[list(SLOTS)].tolist())
    found = executor.evaluate([(one.slot, PLACED[i % 2][i : i + 5]) for i, one in enumerate(runners)], 5)
    evaluated = [found[one.slot] for one in runners]
    slots = [one.slot for one in runners]
    for one in runners:
        one.leave(executor)
    trained = [*np.array(losses).T.tolist(), []]
    assert slots == [*SLOTS, IDLE]
    return list(zip(trained, evaluated, [one.snapshot for one in runners], strict=True))


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_a_trial_that_is_not_finite_changes_no_bit_of_another(mesh):
    executor = shared_executor(8, 8, mesh)
    healthy = run(executor, None, 0.0)
    assert all(np.isfinite(losses).all() and np.isfinite(loss) for losses, loss, _ in healthy)
    for sick in range(len(SLOTS) + 1):
        found = run(executor, sick, (np.nan, np.inf)[sick // 2 % 2])
        assert not np.isfinite(found[sick][1])
        for number, (mine, wanted) in enumerate(zip(found, healthy, strict=True)):
            if number != sick:
                assert mine[:2] == wanted[:2]
                assert difference(mine[2], wanted[2]) == 0.0
