"""Memory of a compiled step, by its own analysis, against a budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from altojax.device.batch_shapes import Shape
from altojax.device.executor import Executor
from jaxlm.data.batching.row_layout import RowGeometry
from jaxlm.devices.machine import MARGIN
from jaxlm.models.computation import Remat
from jaxrun.process.errors import UserError
from jaxrun.terminal.sizes import size_text

ENOUGH_TOKENS = 32768
"""Tokens of a step that fill an accelerator."""


@dataclass(frozen=True)
class Capacity:
    """The largest step within a budget: M(rows) = fixed + per_row · rows (ALTO, "Intra-task scheduler").

    Attributes:
        rows: Of the largest step admitted.
        budget_bytes: The budget.
        resident_bytes: Base weights, adapters and moments, which stay from step to step.
        step_bytes: Temporaries of the largest step that was analysed.
        remat: What the backward pass recomputes.
        spare_bytes: What the largest step leaves of the budget.
    """

    rows: int
    budget_bytes: int
    resident_bytes: int
    step_bytes: int
    remat: Remat
    spare_bytes: int = 0


def plan_capacity(
    executor: Executor,
    choices: Sequence[Remat],
    largest: Shape,
    smallest: Shape,
    budget_bytes: int,
    enough: int | None = None,
) -> Capacity:
    """Chooses what the backward pass recomputes, and how many rows a training step may hold.

    Takes the first of `choices` whose compiled step of shape `largest` fits, the one the run would like to take, or of
    which a part that still fills the device does. Where there is none, compiles the last one's step of shape `smallest`
    too, and interpolates between both.

    Args:
        executor: Of the run.
        choices: What the backward pass may recompute, the least first.
        largest: The step that the run would like to take.
        smallest: The smallest step that it can take.
        budget_bytes: Of a device.
        enough: Tokens of a step that fill the device; None is as many as there are.

    Raises:
        UserError: Not even `smallest` fits.
    """
    usable = int(budget_bytes * (1 - MARGIN))
    resident = executor.resident_bytes()

    def need(shape: Shape) -> int:
        return executor.programs.temp_bytes("train", shape)

    if resident > usable:
        raise UserError(
            f"memory_budget: {size_text(budget_bytes)} given or found, but the base and its slots alone take "
            f"{size_text(resident)}; expected a larger budget or fewer slots"
        )
    for choice in choices:
        executor.recompute(choice)
        high = need(largest)
        if resident + high <= usable:
            spare = usable - resident - high
            return Capacity(largest.rows, budget_bytes, resident, high, choice, spare)
        part = int(largest.rows * (usable - resident) / high)
        if enough is not None and part * largest.length >= enough:
            return Capacity(part, budget_bytes, resident, high, choice)
    low = need(smallest)
    if resident + low > usable:
        raise UserError(
            f"memory_budget: {size_text(budget_bytes)} given or found, but the base and its slots take "
            f"{size_text(resident)} and the smallest step {size_text(low)}; expected a larger budget, fewer slots, a "
            "smaller batch or shorter rows"
        )
    per_row = (high - low) / max(largest.rows - smallest.rows, 1)
    rows = smallest.rows + int((usable - resident - low) / max(per_row, 1e-9))
    return Capacity(max(smallest.rows, min(rows, largest.rows)), budget_bytes, resident, low, choices[-1])


def parking_places(executor: Executor, capacity: Capacity, trials: int) -> int:
    """Returns the places for parked trials that the largest step leaves room for, and for one trial on its way.

    None where the device has the host's memory, or where the slots of a trial lie on some devices of several.

    Args:
        executor: Of the run.
        capacity: What its steps take.
        trials: That could have to wait.
    """
    alone = executor.sharding.layout is None and jax.default_backend() != "cpu"
    return max(0, min(capacity.spare_bytes // executor.place_bytes - 1, trials)) if alone else 0


def enough_tokens() -> int | None:
    """Returns the tokens of a step that fill the default device, beyond which it computes none the faster."""
    return None if jax.default_backend() == "cpu" else ENOUGH_TOKENS


def evaluation_rows(capacity_rows: int, geometry: RowGeometry, own_slots: int) -> int:
    """Returns the rows of an evaluation batch that fill a device.

    No more than a training step may hold, since evaluation keeps nothing for a backward pass.

    Args:
        capacity_rows: Of such a step.
        geometry: Of the rows.
        own_slots: Slots of the device.
    """
    return min(capacity_rows, max(8, own_slots, (enough_tokens() or 0) // geometry.length))
