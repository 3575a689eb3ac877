"""Responses of the page: read in one thread, and made once for all readers."""

import contextlib
import gzip
import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from altojax.cluster.service.page import curves, view
from altojax.cluster.service.queue.queue_view import QueueView
from jaxrun.files.atomic import user_errors

_FRESH_S = 1.0

Files = Callable[[int], AbstractContextManager[None]]
"""Given the number of a user, touches files in a block as tasks of that user do."""


def as_who_serves(uid: int) -> AbstractContextManager[None]:
    """Touches files with the rights of this process, whoever's they are."""
    return contextlib.nullcontext()


class ViewSource(Protocol):
    """A source of snapshots of the queue; `altojax.cluster.service.queue.queue_view.Reader` is one."""

    def snapshot(self) -> QueueView:
        """The queue as it is now."""
        ...


@dataclass(frozen=True)
class Body:
    """One answer.

    Attributes:
        content: JSON.
    """

    content: bytes

    @cached_property
    def tag(self) -> str:
        """An ``ETag`` of this content and no other."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    @cached_property
    def packed(self) -> bytes:
        """The content, compressed with gzip."""
        return gzip.compress(self.content, compresslevel=5)


class NeedsToken(Exception):
    """Raised at a request that only the holder of the token may make."""


class Feed:
    """Answers about one queue. Not thread-safe: like its source, it belongs to one thread.

    Any user of the host can read the page, and it cannot tell which one does. So where a queue has tasks of others than
    who serves it, or tenants that are for certain users, it shows notes and losses to the token's holder only.
    """

    def __init__(
        self,
        source: ViewSource,
        user: str,
        *,
        private: bool = False,
        files: Files = as_who_serves,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes a feed.

        Args:
            source: Where snapshots come from.
            user: OS user who serves.
            private: Whether tenants are for certain users.
            files: Touches the run of a task of a user, by number, in a block.
            clock: Seconds that only grow.
        """
        self._source = source
        self._user = user
        self._private = private
        self._files = files
        self._clock = clock
        self._read_at_s = -float("inf")
        self._snapshot: QueueView | None = None
        self._states: dict[bool, Body] = {}
        self._curves: dict[str, tuple[tuple[int, ...], Body]] = {}

    def state(self, *, trusted: bool) -> tuple[Body, float]:
        """Returns the queue, and the time that its clock shows, in seconds.

        Args:
            trusted: Whether the token was given.

        Raises:
            UserError: The store cannot be read.
        """
        snapshot = self._now()
        details = trusted or not self._shared(snapshot)
        if details not in self._states:
            self._states[details] = Body(view.to_json(view.view(snapshot, details=details)))
        return self._states[details], snapshot.now_s + self._clock() - self._read_at_s

    def losses(self, name: str, *, trusted: bool) -> Body | None:
        """Returns the losses of a task's run, or None where the queue has no such task.

        Args:
            name: The task.
            trusted: Whether the token was given.

        Raises:
            NeedsToken: They are not for everybody.
            UserError: The store or the run's journal cannot be read.
        """
        snapshot = self._now()
        if not trusted and self._shared(snapshot):
            raise NeedsToken
        job = snapshot.job(name)
        if job is None:
            return None
        run_dir, known = Path(job.journal_dir), self._curves.get(name)
        with user_errors(run_dir), self._files(job.uid):
            mark = curves.mark(run_dir)
            if known is None or known[0] != mark:
                known = mark, Body(curves.to_json(curves.read_losses(run_dir, job.tasks)))
        self._curves[name] = known
        return known[1]

    def _shared(self, snapshot: QueueView) -> bool:
        return self._private or any(job.user != self._user for job in snapshot.jobs)

    def _now(self) -> QueueView:
        if self._snapshot is None or self._clock() - self._read_at_s >= _FRESH_S:
            self._snapshot = self._source.snapshot()
            self._read_at_s = self._clock()
            self._states = {}
            running = {job.name for job in self._snapshot.jobs if job.gpus}
            self._curves = {name: known for name, known in self._curves.items() if name in running}
        return self._snapshot
