"""The intra-task scheduler: which waiting trial gets a free slot (ALTO, "Intra-task scheduler"). Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

from altojax.batch import round_rows


@dataclass(frozen=True)
class Load:
    """What a trial adds to a step.

    Attributes:
        trial: Index of the trial in the run.
        rows: Its micro-batch.
        length: Its longest row, in tokens, as a bucket.
    """

    trial: int
    rows: int
    length: int


def step_tokens(loads: Sequence[Load]) -> int:
    """Returns rows · length of a step that carries these trials, row padding included."""
    if not loads:
        return 0
    return round_rows(sum(load.rows for load in loads), len(loads)) * max(load.length for load in loads)


def admit(
    waiting: Sequence[Load], running: Sequence[Load], free_slots: int, capacity_tokens: int, left: Load | None = None
) -> list[Load]:
    """Returns the waiting trials to start now, in the order they take slots.

    Largest micro-batch first, among equals the one whose rows are as long as those already running, then the order of
    the config. After an exit the first place goes to a trial of the same batch size as the one that `left`.

    Args:
        waiting: Trials that could start.
        running: Trials in slots.
        free_slots: Slots to fill.
        capacity_tokens: rows · length that fits the memory budget.
        left: The trial that ended or parked last, if any.
    """
    chosen: list[Load] = []
    pool = list(waiting)
    while len(chosen) < free_slots:
        active = [*running, *chosen]
        fitting = [load for load in pool if step_tokens([*active, load]) <= capacity_tokens]
        if not fitting:
            break
        length = max((load.length for load in active), default=0)
        want = left if not chosen else None

        def rank(load: Load, length: int = length, want: Load | None = want) -> tuple[bool, int, int, int]:
            same = want is not None and load.rows == want.rows
            return not same, -load.rows, abs(load.length - length) if length else -load.length, load.trial

        best = min(fitting, key=rank)
        chosen.append(best)
        pool.remove(best)
    return chosen
