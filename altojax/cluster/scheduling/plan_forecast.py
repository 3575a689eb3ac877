"""Forecast of when each task starts and ends: the scheduler's rules played forward, all as estimated."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from altojax.cluster.scheduling.bounded_wait import holds
from altojax.cluster.scheduling.dispatch import starts
from altojax.cluster.scheduling.records import Ended, Halted, Start
from altojax.cluster.scheduling.state import SchedulerState


@dataclass(frozen=True)
class Expected:
    """Predicted start and end of a task that is not over.

    Attributes:
        start_s: When its next attempt starts, or its newest started.
        end_s: When it ends.
        gpus: How many it is on then.
    """

    start_s: float
    end_s: float
    gpus: int


def forecast(state: SchedulerState) -> Mapping[str, Expected]:
    """Returns what is expected of the tasks that run or wait; those that are paused, or fit nowhere, are left out."""
    state = state.copy()
    expected: dict[str, Expected] = {}
    running: list[tuple[float, int, str]] = []
    for name in state.occupancy.running:
        task = state.tasks[name]
        task.until_s = max(task.until_s, state.now_s)
        stops_s = task.until_s
        if task.status == "stopping":
            stops_s = min(stops_s, state.now_s + state.policy.park_s)
        if task.wish == "run":
            expected[name] = Expected(task.began_s, task.until_s, task.width)
        heapq.heappush(running, (stops_s, task.number, name))
    while True:
        for decision in chain(holds(state), starts(state)):
            state.apply(decision)
            if isinstance(decision, Start):
                task = state.tasks[decision.job]
                expected[decision.job] = Expected(decision.at_s, decision.until_s, task.width)
                heapq.heappush(running, (decision.until_s, task.number, decision.job))
        if not running:
            return expected
        at_s = running[0][0]
        while running and running[0][0] == at_s:
            name = heapq.heappop(running)[2]
            task = state.tasks[name]
            if task.status == "stopping":
                state.apply(Halted(at_s, name, task.attempt, task.left(at_s)))
            else:
                state.apply(Ended(at_s, name, task.attempt))
