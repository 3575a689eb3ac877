"""The intra-task scheduler: which waiting trial gets a free slot. Pure functions.

(ALTO, "Intra-task scheduler" and "Rank-local adapter parallelism".) Devices run in lockstep, so a step takes what its
busiest device takes: a trial goes where there is least to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

Groups = Sequence[Sequence["Load"]]
"""The trials that each device group carries."""


@dataclass(frozen=True)
class Load:
    """A trial's load on a step.

    Attributes:
        trial: Index of the trial in the run.
        rows: Its micro-batch, or the part of it that one device has.
        row_tokens: Of each on average.
        longest: Tokens of its longest row.
        steps: Training steps of its whole schedule.
        group: Rows that stay on one device.
        tile: Tokens of a tile of the device, which no other trial shares.
    """

    trial: int
    rows: int
    row_tokens: float
    longest: int
    steps: int = 0
    group: int = 1
    tile: int = 1

    def on_device(self, replicas: int, tile: int) -> "Load":
        """Returns the most of it that one of so many devices with such tiles has."""
        return replace(self, rows=-(-self.rows // (replicas * self.group)) * self.group, tile=tile)

    @property
    def text_tokens(self) -> float:
        """Tokens of the texts of its micro-batch, on average."""
        return self.rows * self.row_tokens

    @property
    def tokens(self) -> int:
        """Tokens that its micro-batch is expected to take, in whole tiles."""
        return ceil(self.text_tokens / self.tile) * self.tile

    @property
    def most(self) -> int:
        """The most tokens that it may take, each row in tiles of its own."""
        return self.rows * ceil(self.longest / self.tile) * self.tile


def step_tokens(groups: Groups) -> int:
    """Returns the tokens that the busiest device is expected to compute in a step of these trials."""
    return max((sum(load.tokens for load in group) for group in groups), default=0)


def admit(
    waiting: Sequence[Load],
    running: Groups,
    free_slots: Sequence[int],
    capacity_tokens: int,
    left: Load | None = None,
) -> list[tuple[Load, int]]:
    """Returns the waiting trials to start now and the device group of each, in the order they take slots.

    Longest schedule first, in steps: trials of small batches take most steps, and started last they would run on alone
    when all others have ended. Among equals, after an exit the first place goes to a trial of the same batch size as
    the one that `left`; then most tokens first, as ALTO has it, and the order of the config. Each goes to the group
    with a free slot that has least to do.

    Args:
        waiting: Trials that could start.
        running: Trials in slots, by group.
        free_slots: Slots to fill, by group.
        capacity_tokens: Of a device in a step. A step that turns out to hold more is taken in parts.
        left: The trial that ended or parked last, if any.
    """
    groups, free = [list(group) for group in running], list(free_slots)
    chosen: list[tuple[Load, int]] = []
    pool = sorted(waiting, key=lambda load: load.trial)
    while pool and any(free):
        target = least_busy(groups, free)
        room = capacity_tokens - sum(load.tokens for load in groups[target])
        fitting = [load for load in pool if load.tokens <= room or not groups[target]]
        if not fitting:
            break
        want = left if not chosen else None

        def rank(load: Load, want: Load | None = want) -> tuple[int, bool, int, int]:
            return -load.steps, not (want is not None and load.rows == want.rows), -load.tokens, load.trial

        best = min(fitting, key=rank)
        chosen.append((best, target))
        groups[target].append(best)
        free[target] -= 1
        pool.remove(best)
    return chosen


def widest(loads: Sequence[Load], groups: int, slots: int) -> int:
    """Returns the tokens of a device in the largest step a run would like to take: its largest trials, dealt evenly.

    Args:
        loads: Of all trials.
        groups: Device groups.
        slots: Slots of each.
    """
    dealt: list[list[Load]] = [[] for _ in range(groups)]
    free = [slots] * groups
    for load in sorted(loads, key=lambda load: -load.tokens)[: groups * slots]:
        target = least_busy(dealt, free)
        dealt[target].append(load)
        free[target] -= 1
    return step_tokens(dealt)


def least_busy(groups: Groups, free: Sequence[int]) -> int:
    """Returns the group with fewest tokens among those that have a free slot, the first of equals."""
    return min((step_tokens([group]), number) for number, group in enumerate(groups) if free[number])[1]
