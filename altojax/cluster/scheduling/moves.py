"""Moves of running tasks to more GPUs, where a restart pays.

Only while GPUs idle that nobody who waits could use, and only where the training that it saves is ``move_gain`` times
what it costs: to park, to resume and to set up again. A task moves to more GPUs than it has and never to fewer, so it
moves at most once for each of its widths until it has to wait again: nothing goes to and fro.
"""

import heapq
from collections.abc import Iterator

from altojax.cluster.scheduling.records import Hold, Stop
from altojax.cluster.scheduling.resources.nodes import Gpus
from altojax.cluster.scheduling.resources.task import Task
from altojax.cluster.scheduling.state import SchedulerState

_LOOKED_AT = 16
"""Running tasks that are looked at, those that end last."""


def moves(state: SchedulerState) -> Iterator[Hold | Stop]:
    """Yields a hold and a stop for each task that is to be moved; apply each before the next is asked for."""
    if not state.policy.moves or not state.rule.fair or not state.occupancy.free.fits(1) or _somebody_waits(state):
        return
    running = (state.tasks[name] for name in state.occupancy.running)
    trains = (
        task for task in running if task.status == "running" and task.set_up and task.width < max(task.job.speeds)
    )
    for task in heapq.nlargest(_LOOKED_AT, trains, key=lambda task: (task.until_s, -task.number)):
        found = _wider(state, task)
        if found is not None:
            width, gpus, saved_s = found
            why = f"from {task.width} to {width} GPUs ends {saved_s:.0f} s sooner"
            yield Hold(state.now_s, task.job.name, gpus, state.now_s + state.policy.park_s, why)
            yield Stop(state.now_s, task.job.name, task.attempt, "moved")


def _somebody_waits(state: SchedulerState) -> bool:
    """Tells whether a task waits for anything but its own tenant's quota."""
    return any(
        entry.width <= state.shares.room(tenant)
        for tenant in state.waiting.tenants()
        for entry in state.waiting.firsts(tenant)
    )


def _wider(state: SchedulerState, task: Task) -> tuple[int, Gpus, float] | None:
    """The width on which a task ends soonest, GPUs for it, and the seconds that it saves; None where no move pays."""
    cost_s = state.policy.park_s + state.policy.resume_s + task.job.setup_s
    left_s, left = task.left_s(state.now_s), task.left(state.now_s)
    most = task.width + min(state.occupancy.free.gpus, state.shares.room(task.job.tenant))
    best: tuple[int, Gpus, float] | None = None
    for width in state.widths(task):
        saved_s = left_s - left / task.job.speeds[width]
        if width <= task.width or width > most or saved_s < state.policy.move_gain * cost_s or saved_s <= 0:
            continue
        if best is not None and saved_s - cost_s <= best[2]:
            continue
        gpus = state.occupancy.spot(width, instead=task.job.name)
        if gpus is not None:
            best = width, gpus, saved_s - cost_s
    return best
