"""Predicted steps of a run without early exits.

Pure functions of the trials' loads: nothing is compiled or measured, and the same run is always foreseen alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from altojax.packing.slot_admission import Load, admit, step_tokens


@dataclass(frozen=True)
class Course:
    """The steps of a whole run.

    Attributes:
        steps: Training steps of all slots.
        tokens: That a device computes in them.
    """

    steps: int
    tokens: int


def foresee(loads: Sequence[Load], groups: int, slots: int, capacity_tokens: int | None = None) -> Course:
    """Plays a run: trials are admitted, stepped until the first of them ends, and others take the place.

    Args:
        loads: Of all trials, at least one, for one device.
        groups: Device groups.
        slots: Slots of each.
        capacity_tokens: Of a device in a step; None is any.
    """
    room = sum(load.tokens for load in loads) if capacity_tokens is None else capacity_tokens
    waiting = list(loads)
    running: list[list[Load]] = [[] for _ in range(groups)]
    left = {load.trial: max(load.steps, 1) for load in loads}
    steps = tokens = 0
    gone: Load | None = None
    while waiting or any(running):
        free = [slots - len(carried) for carried in running]
        for load, target in admit(waiting, running, free, room, gone):
            running[target].append(load)
            waiting.remove(load)
        ticks = min(left[load.trial] for group in running for load in group)
        steps, tokens = steps + ticks, tokens + ticks * step_tokens(running)
        gone = None
        for group in running:
            for load in list(group):
                left[load.trial] -= ticks
                if not left[load.trial]:
                    group.remove(load)
                    gone = load
    return Course(steps, tokens)
