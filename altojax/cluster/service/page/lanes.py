"""The timeline: each task's bars on the lanes of its GPUs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from altojax.cluster.scheduling.resources.nodes import Gpus, neighbours
from altojax.cluster.service.queue.queue_view import AttemptSpan, JobView, QueueView

_MOST_PAST = 4000
_MOST_PLANNED = 1000
# A forecast is rounded: a task may begin this much before the one ahead of it has left.
_SLACK_S = 1e-3


@dataclass(frozen=True)
class Bar:
    """Neighbouring GPUs that one task holds for a while.

    Attributes:
        task: Its name.
        tenant: Its tenant.
        lane: The first lane.
        lanes: How many.
        start_s: Seconds since the queue was made.
        end_s: The same; of a running task when it is expected to end, None where nobody knows.
        kind: ``past``, ``running`` or ``planned``.
        outcome: How the attempt ended; ``running`` while it has not, empty where it has not begun.
    """

    task: str
    tenant: str
    lane: int
    lanes: int
    start_s: float
    end_s: float | None
    kind: Literal["past", "running", "planned"]
    outcome: str = ""


def nodes_of(snapshot: QueueView) -> dict[str, int]:
    """Returns every present or past node, with its GPUs; lanes are numbered in this order."""
    nodes = dict(snapshot.nodes)
    for span in _shown(snapshot):
        for node, gpus in span.gpus.items():
            nodes[node] = max([nodes.get(node, 0), *(gpu + 1 for gpu in gpus)])
    return nodes


def bars(snapshot: QueueView) -> list[Bar]:
    """Returns what ran, runs and is planned.

    Which GPUs a waiting task will get is not settled before it starts: it is drawn on some that are free by then.
    """
    first = _first_lanes(nodes_of(snapshot))
    jobs = {job.name: job for job in snapshot.jobs}
    drawn = []
    for span in _shown(snapshot):
        running = span.end_s is None
        end_s = _end_s(jobs.get(span.job)) if running else span.end_s
        for lane, lanes in neighbours(_lanes(span.gpus, first)):
            kind: Literal["past", "running"] = "running" if running else "past"
            drawn.append(Bar(span.job, span.tenant, lane, lanes, span.start_s, end_s, kind, span.outcome))
    return [*drawn, *_planned(snapshot, drawn, first)]


def _planned(snapshot: QueueView, drawn: Iterable[Bar], first: Mapping[str, int]) -> list[Bar]:
    waiting = [
        (job.start_s, job.name, job)
        for job in snapshot.jobs
        if job.status == "waiting" and job.width and job.start_s is not None and job.end_s is not None
    ]
    if not waiting:
        return []
    free_s = np.full(sum(nodes_of(snapshot).values()), np.inf)
    for node, gpus in snapshot.nodes.items():
        free_s[first[node] : first[node] + gpus] = -np.inf
    for bar in drawn:
        if bar.kind == "running":
            held = slice(bar.lane, bar.lane + bar.lanes)
            free_s[held] = np.maximum(free_s[held], np.inf if bar.end_s is None else bar.end_s)
    found, starts = [], np.array(list(first.values()), dtype=int)
    for start_s, name, job in sorted(waiting)[:_MOST_PLANNED]:
        lanes = _choose(free_s <= start_s + _SLACK_S, job.width or 0, starts)
        if lanes is None:
            continue
        end_s = job.end_s or start_s
        free_s[lanes] = end_s
        found += [
            Bar(name, job.tenant, lane, many, start_s, end_s, "planned") for lane, many in neighbours(lanes.tolist())
        ]
    return found


def _choose(free: np.ndarray, width: int, starts: np.ndarray) -> np.ndarray | None:
    """Returns lanes for a gang: inside the fullest node that has room, else wherever there is any; None without room.

    Args:
        free: bool, [lanes].
        width: GPUs.
        starts: The first lane of each node, [nodes], ascending.
    """
    room = np.add.reduceat(free, starts, dtype=int)
    fits = room >= width
    begin, end = 0, len(free)
    if fits.any():
        node = int(np.argmin(np.where(fits, room, len(free) + 1)))
        begin, end = int(starts[node]), int(starts[node + 1]) if node + 1 < len(starts) else len(free)
    lanes = begin + np.flatnonzero(free[begin:end])
    if len(lanes) < width:
        return None
    together = np.flatnonzero(lanes[width - 1 :] - lanes[: len(lanes) - width + 1] == width - 1)
    at = int(together[0]) if len(together) else 0
    return lanes[at : at + width]


def _shown(snapshot: QueueView) -> list[AttemptSpan]:
    """Returns what runs and the newest of what ran."""
    running = [span for span in snapshot.spans if span.end_s is None]
    past = sorted((span for span in snapshot.spans if span.end_s is not None), key=lambda span: span.end_s or 0.0)
    return past[-_MOST_PAST:] + running


def _first_lanes(nodes: Mapping[str, int]) -> dict[str, int]:
    starts = np.cumsum([0, *nodes.values()])
    return {node: int(start) for node, start in zip(nodes, starts, strict=False)}


def _lanes(gpus: Gpus, first: Mapping[str, int]) -> list[int]:
    return [first[node] + gpu for node, indices in gpus.items() for gpu in indices]


def _end_s(job: JobView | None) -> float | None:
    return None if job is None else job.end_s
