"""The intra-task scheduler: which waiting trial gets a free slot, and on which devices. Pure functions.

(ALTO, "Intra-task scheduler" and "Rank-local adapter parallelism".) Devices run in lockstep, so a step takes what its
busiest device takes: a trial goes where there is least to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from altojax.ladder import round_rows


@dataclass(frozen=True)
class Load:
    """What a trial adds to a step.

    Attributes:
        trial: Index of the trial in the run.
        rows: Its micro-batch, or the part of it that one device has.
        length: Its longest row, in tokens, as a bucket.
        steps: Training steps of its whole schedule.
    """

    trial: int
    rows: int
    length: int
    steps: int = 0


def step_tokens(groups: Sequence[Sequence[Load]]) -> int:
    """Returns rows · length that every device computes in a step, row padding included.

    Args:
        groups: The trials that each device group carries.
    """
    carried = [group for group in groups if group]
    if not carried:
        return 0
    rows = max(round_rows(sum(load.rows for load in group), len(group)) for group in carried)
    return rows * max(load.length for group in carried for load in group)


def admit(
    waiting: Sequence[Load],
    running: Sequence[Sequence[Load]],
    free_slots: Sequence[int],
    capacity_tokens: int,
    left: Load | None = None,
) -> list[tuple[Load, int]]:
    """Returns the waiting trials to start now and the device group of each, in the order they take slots.

    Longest schedule first, in steps: trials of small batches take most steps, and started last they would go on alone
    when all others have ended. Among equals, after an exit the first place goes to a trial of the same batch size as
    the one that `left`; then largest micro-batch first, as ALTO has it, the one whose rows are as long as those already
    running, and the order of the config. Each goes to the group with a free slot that has fewest rows.

    Args:
        waiting: Trials that could start.
        running: Trials in slots, by group.
        free_slots: Slots to fill, by group.
        capacity_tokens: rows · length of a device that fits the memory budget.
        left: The trial that ended or parked last, if any.
    """
    groups, free = [list(group) for group in running], list(free_slots)
    chosen: list[tuple[Load, int]] = []
    pool = list(waiting)
    while pool and any(free):
        target = least_busy(groups, free)
        fitting = [load for load in pool if step_tokens(_with(groups, target, load)) <= capacity_tokens]
        if not fitting:
            break
        length = max((load.length for group in groups for load in group), default=0)
        want = left if not chosen else None

        def rank(load: Load, length: int = length, want: Load | None = want) -> tuple[int, bool, int, int, int]:
            same = want is not None and load.rows == want.rows
            like = abs(load.length - length) if length else -load.length
            return -load.steps, not same, -load.rows, like, load.trial

        best = min(fitting, key=rank)
        chosen.append((best, target))
        groups[target].append(best)
        free[target] -= 1
        pool.remove(best)
    return chosen


def widest(loads: Sequence[Load], groups: int, slots: int) -> tuple[int, int]:
    """Returns (rows, length) of a device in the largest step a run would like to take.

    Its largest micro-batches, dealt to where there is least to do, and its longest rows.

    Args:
        loads: Of all trials.
        groups: Device groups.
        slots: Slots of each.
    """
    dealt: list[list[Load]] = [[] for _ in range(groups)]
    free = [slots] * groups
    for load in sorted(loads, key=lambda load: -load.rows)[: groups * slots]:
        target = least_busy(dealt, free)
        dealt[target].append(load)
        free[target] -= 1
    return max(sum(load.rows for load in group) for group in dealt), max(load.length for load in loads)


def least_busy(groups: Sequence[Sequence[Load]], free: Sequence[int]) -> int:
    """Returns the group with fewest rows among those that have a free slot, the first of equals."""
    return min((sum(load.rows for load in group), number) for number, group in enumerate(groups) if free[number])[1]


def _with(groups: Sequence[Sequence[Load]], target: int, load: Load) -> list[list[Load]]:
    return [[*group, load] if number == target else list(group) for number, group in enumerate(groups)]
