"""The queue as JSON for the page that draws it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import pydantic

from altojax.cluster.scheduling.resources.nodes import Gpus, neighbours
from altojax.cluster.service.page.lanes import Bar, bars, nodes_of
from altojax.cluster.service.queue.queue_view import JobView, QueueView, TenantView
from altojax.cluster.service.queue.visibility import masked

_OVER = frozenset({"ended", "failed", "cancelled", "refused"})
_ON_GPUS = frozenset({"running", "stopping"})

_MOST_OVER = 500


@dataclass(frozen=True)
class TaskRow:
    """One task of the table.

    Attributes:
        name: Its name in the queue.
        tenant: Its tenant; empty where it was refused or not taken yet and names none.
        status: As the queue has it.
        phase: What that comes to: ``running``, ``waiting`` or ``over``; a merged task's is that of what it is part of.
        gpus: GPUs that it holds or is planned to get; None where neither is so.
        where: The GPUs that it holds, in words.
        widths: GPU counts that it can use.
        attempt: The newest one; 0 before any.
        trials: Trials of all its tasks.
        submitted_s: Seconds since the queue was made.
        start_s: The same; when it started or is expected to, None where nobody knows.
        end_s: The same of its end.
        started: Whether `start_s` has been.
        ended: Whether `end_s` has been.
        note: Why it waits or failed, or what it is part of.
    """

    name: str
    tenant: str
    status: str
    phase: Literal["running", "waiting", "over"]
    gpus: int | None
    where: str
    widths: tuple[int, ...]
    attempt: int
    trials: int
    submitted_s: float
    start_s: float | None
    end_s: float | None
    started: bool
    ended: bool
    note: str


@dataclass(frozen=True)
class TenantRow(TenantView):
    """The use of one tenant.

    Attributes:
        used: Its share of the GPU-seconds of all.
        due: Its share of the weights of all.
    """

    used: float
    due: float


@dataclass(frozen=True)
class PageState:
    """Everything that the page shows, losses aside.

    Attributes:
        made_s: Seconds since the epoch when the queue was made.
        holder: Which process orchestrates; empty where none does.
        alive: Whether it still says so.
        nodes: Every node that is there or was, with its GPUs; lanes of bars are numbered in this order.
        nodes_there: How many of them are there.
        gpus: GPUs that are there.
        busy: GPUs that are held.
        counts: Status -> tasks.
        rule: What made the last plan.
        makespan_s: Seconds from that plan to the end of the last task.
        bound_s: No plan could be shorter.
        gap: By how much it is longer, as a share.
        rows: The tasks: all that are not over, and the newest of those that are.
        older: Tasks that are over and not listed.
        bars: The timeline.
        tenants: Who uses how much.
        details: Whether notes are told.
    """

    made_s: float
    holder: str
    alive: bool
    nodes: tuple[tuple[str, int], ...]
    nodes_there: int
    gpus: int
    busy: int
    counts: Mapping[str, int]
    rule: str
    makespan_s: float | None
    bound_s: float | None
    gap: float | None
    rows: tuple[TaskRow, ...]
    older: int
    bars: tuple[Bar, ...]
    tenants: tuple[TenantRow, ...]
    details: bool


_STATE = pydantic.TypeAdapter(PageState)


def to_json(state: PageState) -> bytes:
    """Returns a state as JSON; what is not finite is null."""
    return _STATE.dump_json(state)


def view(snapshot: QueueView, *, details: bool) -> PageState:
    """Returns what the page shows of a snapshot.

    Args:
        snapshot: The queue.
        details: Whether to show notes, which may quote a task's files.
    """
    if not details:
        snapshot = masked(snapshot, ())
    over = sorted((job for job in snapshot.jobs if job.status in _OVER), key=lambda job: job.ended_s or job.submitted_s)
    left_out = {job.name for job in over[:-_MOST_OVER]}
    jobs = {job.name: job for job in snapshot.jobs}
    weights = sum(tenant.weight for tenant in snapshot.tenants)
    used_s = sum(tenant.gpu_s for tenant in snapshot.tenants)
    return PageState(
        made_s=snapshot.made_s,
        holder=snapshot.holder,
        alive=snapshot.alive,
        nodes=tuple(nodes_of(snapshot).items()),
        nodes_there=sum(gpus > 0 for gpus in snapshot.nodes.values()),
        gpus=sum(snapshot.nodes.values()),
        busy=sum(_count(job.gpus) for job in snapshot.jobs),
        counts=Counter(job.status for job in snapshot.jobs),
        rule=snapshot.rule,
        makespan_s=snapshot.makespan_s,
        bound_s=snapshot.bound_s,
        gap=snapshot.gap,
        rows=tuple(_row(job, jobs) for job in snapshot.jobs if job.name not in left_out),
        older=len(left_out),
        bars=tuple(bars(snapshot)),
        tenants=tuple(
            TenantRow(**asdict(one), used=one.gpu_s / used_s if used_s else 0.0, due=one.weight / weights)
            for one in snapshot.tenants
        ),
        details=details,
    )


def _row(job: JobView, jobs: Mapping[str, JobView]) -> TaskRow:
    phase = _phase(jobs.get(job.merged_into or "", job) if job.status == "merged" else job)
    notes = [job.reason]
    notes += [f"with others as {job.merged_into}"] if job.merged_into else []
    notes += [f"holds {', '.join(job.members)}"] if job.members else []
    held = _count(job.gpus)
    return TaskRow(
        name=job.name,
        tenant=job.tenant,
        status=job.status,
        phase=phase,
        gpus=held or job.width,
        where="; ".join(f"{node} {_ranges(gpus)}" for node, gpus in job.gpus.items()),
        widths=job.widths,
        attempt=job.attempt,
        trials=job.trials,
        submitted_s=job.submitted_s,
        start_s=job.start_s,
        end_s=job.end_s,
        started=job.started_s is not None or phase == "running",
        ended=job.ended_s is not None,
        note="; ".join(filter(None, notes)),
    )


def _phase(job: JobView) -> Literal["running", "waiting", "over"]:
    return "over" if job.status in _OVER else "running" if job.status in _ON_GPUS else "waiting"


def _count(gpus: Gpus) -> int:
    return sum(map(len, gpus.values()))


def _ranges(gpus: tuple[int, ...]) -> str:
    """Returns indices as people write them: ``0–3, 6``."""
    return ", ".join(str(first) if many == 1 else f"{first}–{first + many - 1}" for first, many in neighbours(gpus))
