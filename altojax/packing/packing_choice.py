"""Predicted steps of a run without early exits, and the packing of trials that takes the fewest seconds.

Pure functions of the trials' loads: nothing is compiled or measured, and the same run is always foreseen alike.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from altojax.estimates.step_prices import Prices
from altojax.packing.slot_admission import TOGETHER, Load, Packing, admit, expected_tokens, steps_of


@dataclass(frozen=True)
class Course:
    """The steps of a whole run.

    Attributes:
        packing: How its trials share the devices.
        steps: Training steps of all slots.
        tokens: That a device computes in them, padding included.
        lengths: Of their batches, for each of which a step is compiled.
    """

    packing: Packing
    steps: int
    tokens: int
    lengths: frozenset[int]

    def seconds(self, prices: Prices) -> float:
        """Seconds that its steps take, and their compilations."""
        return self.steps * prices.step_s + self.tokens * prices.token_s + len(self.lengths) * prices.compile_s


def foresee(
    loads: Sequence[Load], groups: int, slots: int, packing: Packing = TOGETHER, capacity_tokens: int | None = None
) -> Course:
    """Plays a run: trials are admitted, stepped until the first of them ends, and others take the place.

    Args:
        loads: Of all trials, at least one, for one device.
        groups: Device groups.
        slots: Slots of each.
        packing: How trials share the devices.
        capacity_tokens: rows · length that a device holds; None is any.
    """
    least = max(load.rows * load.length for load in loads)
    room = sys.maxsize if capacity_tokens is None else max(capacity_tokens, least)
    waiting = list(loads)
    running: list[list[Load]] = [[] for _ in range(groups)]
    left = {load.trial: max(load.steps, 1) for load in loads}
    steps = tokens = 0
    lengths: set[int] = set()
    gone: Load | None = None
    while waiting or any(running):
        free = [slots - len(carried) for carried in running]
        for load, target in admit(waiting, running, free, room, gone, packing):
            running[target].append(load)
            waiting.remove(load)
        ticks = min(left[load.trial] for group in running for load in group)
        for step in steps_of(running, packing, room):
            steps, tokens = steps + ticks, tokens + ticks * expected_tokens(step)
            lengths.add(max(load.expected for group in step for load in group))
        gone = None
        for group in running:
            for load in list(group):
                left[load.trial] -= ticks
                if not left[load.trial]:
                    group.remove(load)
                    gone = load
    return Course(packing, steps, tokens, frozenset(lengths))


def best_course(loads: Sequence[Load], groups: int, slots: int, prices: Prices) -> Course:
    """Returns the course that takes the fewest seconds: all trials together, or unlike lengths apart or in turn.

    Args:
        loads: Of all trials, for one device.
        groups: Device groups.
        slots: Slots of each.
        prices: What steps take.
    """
    ways = [TOGETHER]
    if len({load.expected for load in loads}) > 1:
        ways += [Packing(prices.step_tokens), Packing(None, like_first=True), Packing(prices.step_tokens, True)]
    courses = [foresee(loads, groups, slots, way) for way in ways]
    return min(courses, key=lambda course: course.seconds(prices))
