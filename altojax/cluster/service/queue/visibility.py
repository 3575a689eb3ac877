"""Visibility of a queue's tasks: all of one's own; of others only that they exist, when, and on which GPUs."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from altojax.cluster.service.queue.queue_view import JobView, QueueView
from altojax.cluster.tenancy.members import Members


@dataclass(frozen=True)
class Seen:
    """A queue as one user sees it.

    Attributes:
        snapshot: The queue, without what the user may not see.
        mine: Names of the tasks that the user sees all of and may act on.
    """

    snapshot: QueueView
    mine: frozenset[str]

    @classmethod
    def whole(cls, snapshot: QueueView) -> "Seen":
        """A queue as its operator sees it."""
        return cls(snapshot, frozenset(job.name for job in snapshot.jobs))

    @classmethod
    def by(cls, uid: int, members: Members, snapshot: QueueView) -> "Seen":
        """A queue as one of its users sees it; refused requests of others are not shown."""
        mine = frozenset(job.name for job in snapshot.jobs if _is_of(uid, job, members))
        jobs = tuple(job for job in snapshot.jobs if job.name in mine or job.status != "refused")
        return cls(masked(replace(snapshot, jobs=jobs), mine), mine)


def masked(snapshot: QueueView, mine: Collection[str]) -> QueueView:
    """Returns a snapshot in which tasks other than `mine` show neither reasons nor folders nor names inside them."""
    return replace(
        snapshot,
        jobs=tuple(job if job.name in mine else _hidden(job) for job in snapshot.jobs),
        spans=tuple(span if span.job in mine else replace(span, reason="") for span in snapshot.spans),
    )


def _hidden(job: JobView) -> JobView:
    return replace(job, reason="", output_dir="", journal_dir="", tasks=())


def _is_of(uid: int, job: JobView, members: Members) -> bool:
    if job.status in ("submitted", "refused"):  # nobody has checked the tenant that it names
        return uid in (members.operator, job.uid)
    return members.share(uid, job.tenant, job.uid)
