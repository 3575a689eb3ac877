"""The intra-task scheduler: which waiting trial gets a free slot, and which trials step together. Pure functions.

(ALTO, "Intra-task scheduler" and "Rank-local adapter parallelism".) Devices run in lockstep, so a step takes what its
busiest device takes: a trial goes where there is least to do. A step's rows are as long as its longest, so trials of
unlike lengths step together only where that is predicted to take less time than steps of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from altojax.device.batch_shapes import round_rows

Groups = Sequence[Sequence["Load"]]
"""The trials that each device group carries."""


@dataclass(frozen=True)
class Load:
    """A trial's load on a step.

    Attributes:
        trial: Index of the trial in the run.
        rows: Its micro-batch, or the part of it that one device has.
        length: Its longest row, in tokens, as a bucket.
        steps: Training steps of its whole schedule.
        usual: The longest row of a usual micro-batch, likewise; 0 is `length`.
        group: Rows that stay on one device.
    """

    trial: int
    rows: int
    length: int
    steps: int = 0
    usual: int = 0
    group: int = 1

    def shared_by(self, replicas: int) -> "Load":
        """Returns the most of it that one of so many devices has."""
        return replace(self, rows=-(-self.rows // (replicas * self.group)) * self.group)

    @property
    def expected(self) -> int:
        """Tokens of a row that its steps are expected to have."""
        return self.usual or self.length


@dataclass(frozen=True)
class Packing:
    """The packing of trials of unlike lengths onto the devices.

    Which way is best for a run says `altojax.packing.packing_choice`.

    Attributes:
        step_tokens: Tokens' worth of time that a step takes whatever its tokens, which decides who steps with whom;
            None steps all together.
        like_first: Whether waiting trials whose rows are as long as those at work go before longer schedules.
    """

    step_tokens: int | None = None
    like_first: bool = False


TOGETHER = Packing()


def step_rows(groups: Groups) -> int:
    """Returns the rows that every device computes in a step, row padding included."""
    return max((round_rows(sum(load.rows for load in group), len(group)) for group in groups if group), default=0)


def step_tokens(groups: Groups) -> int:
    """Returns rows · length that every device computes in the largest step of these trials, row padding included."""
    return step_rows(groups) * max((load.length for group in groups for load in group), default=0)


def expected_tokens(groups: Groups) -> int:
    """Returns rows · length that every device computes in a usual step of these trials, row padding included."""
    return step_rows(groups) * max((load.expected for group in groups for load in group), default=0)


def steps_of(groups: Groups, packing: Packing, capacity_tokens: int | None = None) -> list[list[list[Load]]]:
    """Returns the steps in which trials take a micro-batch each: the trials of every step, by device group.

    Those next to each other in length are stepped together where the tokens of the padding are fewer than a step's own
    `packing.step_tokens`, and always those of one length.

    Args:
        groups: The trials that each device group carries.
        packing: How they share the devices.
        capacity_tokens: rows · length of a device that a step holds; None is any.
    """
    sizes = sorted({(load.expected, load.length) for group in groups for load in group})
    if packing.step_tokens is None or len(sizes) < 2:
        return [[list(group) for group in groups]] if sizes else []

    def between(first: int, end: int) -> list[list[Load]]:
        chosen = set(sizes[first:end])
        return [[load for load in group if (load.expected, load.length) in chosen] for group in groups]

    # The cheapest way to cut the first lengths into steps: (tokens' worth of time, steps, where the steps begin).
    cheapest: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, ())]
    for end in range(1, len(sizes) + 1):
        ways = []
        for first in range(end):
            step = between(first, end)
            if first == end - 1 or capacity_tokens is None or step_tokens(step) <= capacity_tokens:
                cost, count, begins = cheapest[first]
                cost += packing.step_tokens + expected_tokens(step)
                ways.append((cost, count + 1, (*begins, first)))
        cheapest.append(min(ways))
    return [between(*ends) for ends in pairwise((*cheapest[-1][2], len(sizes)))]


def holds(groups: Groups, packing: Packing, capacity_tokens: int) -> bool:
    """Whether every step of these trials fits."""
    return all(step_tokens(step) <= capacity_tokens for step in steps_of(groups, packing, capacity_tokens))


def admit(
    waiting: Sequence[Load],
    running: Groups,
    free_slots: Sequence[int],
    capacity_tokens: int,
    left: Load | None = None,
    packing: Packing = TOGETHER,
) -> list[tuple[Load, int]]:
    """Returns the waiting trials to start now and the device group of each, in the order they take slots.

    Longest schedule first, in steps: trials of small batches take most steps, and started last they would run on alone
    when all others have ended. Where `packing` puts like lengths first, those go before that cost least padding beside
    the trials at work. Among equals, after an exit the first place goes to a trial of the same batch size as the one
    that `left`; then largest micro-batch first, as ALTO has it, the one whose rows are as long as those already
    running, and the order of the config. Each goes to the group with a free slot that has fewest rows.

    Args:
        waiting: Trials that could start.
        running: Trials in slots, by group.
        free_slots: Slots to fill, by group.
        capacity_tokens: rows · length of a device that fits the memory budget.
        left: The trial that ended or parked last, if any.
        packing: How trials share the devices.
    """
    groups, free = [list(group) for group in running], list(free_slots)
    chosen: list[tuple[Load, int]] = []
    pool = sorted(waiting, key=lambda load: load.trial)
    while pool and any(free):
        target = least_busy(groups, free)
        fitting = [load for load in _kinds(pool) if holds(_with(groups, target, load), packing, capacity_tokens)]
        if not fitting:
            break
        at_work = rows_by_length(groups)
        length = max((load.length for group in groups for load in group), default=0)
        want = left if not chosen else None

        def rank(
            load: Load, at_work: Mapping[int, int] = at_work, length: int = length, want: Load | None = want
        ) -> tuple[int, int, bool, int, int, int]:
            padding = added_padding(load, at_work, packing) if packing.like_first else 0
            same = want is not None and load.rows == want.rows
            like = abs(load.length - length) if length else -load.length
            return padding, -load.steps, not same, -load.rows, like, load.trial

        best = min(fitting, key=rank)
        chosen.append((best, target))
        groups[target].append(best)
        free[target] -= 1
        pool.remove(best)
    return chosen


def widest(loads: Sequence[Load], groups: int, slots: int, packing: Packing = TOGETHER) -> tuple[int, int]:
    """Returns (rows, length) of a device in the largest step a run would like to take.

    Its largest micro-batches, load-balanced, and its longest rows; those of one length where
    unlike ones are stepped apart.

    Args:
        loads: Of all trials.
        groups: Device groups.
        slots: Slots of each.
        packing: How trials share the devices.
    """
    sizes = {(load.expected, load.length) for load in loads}
    if packing.step_tokens is not None and len(sizes) > 1:
        apart = [[load for load in loads if (load.expected, load.length) == size] for size in sizes]
        return max((widest(own, groups, slots) for own in apart), key=lambda step: (step[0] * step[1], step))
    dealt: list[list[Load]] = [[] for _ in range(groups)]
    free = [slots] * groups
    for load in sorted(loads, key=lambda load: -load.rows)[: groups * slots]:
        target = least_busy(dealt, free)
        dealt[target].append(load)
        free[target] -= 1
    return max(sum(load.rows for load in group) for group in dealt), max(load.length for load in loads)


def rows_by_length(groups: Groups) -> dict[int, int]:
    """Returns the rows at work of each usual length, all device groups together."""
    rows: dict[int, int] = {}
    for group in groups:
        for load in group:
            rows[load.expected] = rows.get(load.expected, 0) + load.rows
    return rows


def added_padding(load: Load, at_work: Mapping[int, int], packing: Packing) -> int:
    """Returns the tokens that a trial adds to the steps at work beside those of its own rows.

    Args:
        load: The trial.
        at_work: Rows by usual length.
        packing: How trials share the devices.
    """
    longer = [load.rows * (length - load.expected) for length in at_work if length >= load.expected]
    below = max((length for length in at_work if length < load.expected), default=None)
    shorter = [] if below is None else [at_work[below] * (load.expected - below)]
    alone = [] if packing.step_tokens is None else [packing.step_tokens]
    return min(longer + shorter + alone, default=0)


def least_busy(groups: Groups, free: Sequence[int]) -> int:
    """Returns the group with fewest rows among those that have a free slot, the first of equals."""
    return min((sum(load.rows for load in group), number) for number, group in enumerate(groups) if free[number])[1]


def _kinds(pool: Sequence[Load]) -> list[Load]:
    """Returns the first of every kind of trial: the others would be judged alike."""
    first: dict[tuple[int, ...], Load] = {}
    for load in pool:
        first.setdefault((load.rows, load.length, load.steps, load.usual), load)
    return list(first.values())


def _with(groups: Groups, target: int, load: Load) -> list[list[Load]]:
    return [[*group, load] if number == target else list(group) for number, group in enumerate(groups)]
