"""List schedules: at any time the first task in an order that fits what is free starts."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from altojax.cluster.scheduling.planning.problem import Busy
from altojax.cluster.scheduling.resources.nodes import Cluster, Free, Gpus

PriorityRule = Callable[[Int[np.ndarray, " tasks"], Float[np.ndarray, " tasks"]], Int[np.ndarray, " tasks"]]
"""Widths and durations of tasks -> their order, first to start first; equals as they were given."""

RULES: Mapping[str, PriorityRule] = {
    "longest first": lambda widths, durations_s: np.argsort(-durations_s, kind="stable"),
    "largest first": lambda widths, durations_s: np.argsort(-widths * durations_s, kind="stable"),
    "widest first": lambda widths, durations_s: np.lexsort((-durations_s, -widths)),
    "shortest first": lambda widths, durations_s: np.argsort(durations_s, kind="stable"),
}
"""The last is for the mean: it counts where others end no sooner, such as while a long task runs anyway."""


@dataclass(frozen=True)
class Listed:
    """Start and GPUs of each task, by its place in the input; seconds from now.

    Attributes:
        starts_s: When it starts.
        ends_s: When it ends.
        gpus: Where.
        end_s: When the last of all ends, with what ran at first.
    """

    starts_s: list[float]
    ends_s: list[float]
    gpus: list[Gpus]
    end_s: float


def list_schedule(
    order: Sequence[int],
    widths: Sequence[int],
    durations_s: Sequence[float],
    cluster: Cluster,
    busy: Sequence[Busy] = (),
    limit_s: float = float("inf"),
    free: Free | None = None,
) -> Listed | None:
    """Schedules tasks in an order. Times count from now.

    Args:
        order: Every task once, first to start first.
        widths: GPUs of each task.
        durations_s: Of each task.
        cluster: Where.
        busy: GPUs that are in use at first.
        limit_s: Gives up, and returns None, as soon as a task would end after this.
        free: What is free beside `busy`, where it is at hand.

    Raises:
        ValueError: The cluster holds no gang of some width.
    """
    free = Free(cluster, [one.gpus for one in busy]) if free is None else free.copy()
    count = len(order)
    starts_s, ends_s, where = [0.0] * count, [0.0] * count, [_NOWHERE] * count
    queues: dict[int, list[int]] = {}  # by width, the places in the order of those that wait, the first one last
    for place in range(count - 1, -1, -1):
        queues.setdefault(widths[order[place]], []).append(place)
    running = [(one.until_s, number - len(busy), one.gpus) for number, one in enumerate(busy)]
    heapq.heapify(running)
    now_s, last_s = 0.0, max((one.until_s for one in busy), default=0.0)
    while True:
        while running and running[0][0] <= now_s:
            free.release(heapq.heappop(running)[2])
        # What does not fit now does not fit after others have started either: each width is asked for once.
        first = [(queue[-1], width) for width, queue in queues.items() if free.fits(width)]
        heapq.heapify(first)
        while first:
            place, width = first[0]
            gpus = free.take(width)
            if gpus is None:
                heapq.heappop(first)
                continue
            task, queue = order[place], queues[width]
            starts_s[task], ends_s[task], where[task] = now_s, now_s + durations_s[task], gpus
            last_s = max(last_s, ends_s[task])
            if last_s > limit_s:
                return None
            heapq.heappush(running, (ends_s[task], place, gpus))
            queue.pop()
            if queue:
                heapq.heapreplace(first, (queue[-1], width))
            else:
                heapq.heappop(first)
                del queues[width]
        if not queues:
            return Listed(starts_s, ends_s, where, last_s)
        if not running:
            raise ValueError(f"a gang of {min(queues)} GPUs, expected one that the cluster holds")
        now_s = running[0][0]


_NOWHERE: Gpus = {}
