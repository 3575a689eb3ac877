"""The client of a queue: sends requests and reads their outcomes.

Whoever operates a queue reads and writes its database. Everybody else leaves requests in its spool, and sees what
the operator's process answers.
"""

import contextlib
import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from altojax.cluster.service.queue import spool
from altojax.cluster.service.queue.folder import DATABASE, SPOOL
from altojax.cluster.service.queue.queue_view import Reader
from altojax.cluster.service.queue.requests import Request, RequestKind, job_name
from altojax.cluster.service.queue.spool import new_letter
from altojax.cluster.service.queue.store import View, append_request
from altojax.cluster.service.queue.submission import Submission
from altojax.cluster.service.queue.visibility import Seen
from altojax.cluster.tenancy.members import check_tenant, user_name
from jaxrun.files.home import from_home
from jaxrun.process.errors import UserError, nearest

Wish = Literal["cancel", "pause", "resume"]
ENVIRONMENT = "ALTOJAX_QUEUE"
PATIENCE_S = 10.0
"""Seconds that are waited for an orchestrator's answer."""
_LOOK_S = 0.05


@dataclass(frozen=True)
class Receipt:
    """The outcome of a request.

    Attributes:
        job: Name of the task that it is about; empty where nobody has named it yet.
        error: Why it was refused, in one line; empty where it was not.
        taken: Whether an orchestrator has taken it.
    """

    job: str
    error: str = ""
    taken: bool = True


class Client(ABC):
    """A queue, as one of its users has it.

    Attributes:
        folder: The queue's.
        look_s: Seconds between two looks of who follows a task.
    """

    look_s: float

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def exists(self) -> bool:
        """Whether the queue was made."""
        return True

    @abstractmethod
    def submit(self, submission: Submission, tenant: str | None, patience_s: float = PATIENCE_S) -> Receipt:
        """Puts a task into the queue, for good, and waits a while for it to be taken.

        Args:
            submission: The task.
            tenant: In whose name; None is the one that the user belongs to.
            patience_s: Seconds that are waited for.

        Raises:
            UserError: The queue cannot be written.
        """

    @abstractmethod
    def ask(self, job: str, wish: Wish, patience_s: float = PATIENCE_S) -> Receipt:
        """Asks for a task to be cancelled, paused or resumed, and waits a while for the answer.

        Raises:
            UserError: The queue cannot be written, or has no such task.
        """

    def check_tenant(self, given: str | None) -> None:
        """Refuses a tenant that the user cannot submit for, as far as that is known without an orchestrator.

        Raises:
            UserError: It is known.
        """
        return

    @abstractmethod
    def look(self) -> Seen | None:
        """Returns the queue as this user sees it; None where that takes an orchestrator and there is none now.

        Raises:
            UserError: The queue cannot be read, or is not for this user.
        """

    def close(self) -> None:
        """Lets go of the queue."""
        return


def queue_folder(given: str | None) -> Path:
    """Returns the folder of the queue that is meant: the one given, else that of the environment, else runs/queue."""
    return from_home(given or os.environ.get(ENVIRONMENT) or "runs/queue").absolute()


def connect(folder: Path) -> Client:
    """Returns a queue as whoever runs this process has it; the owner of its folder operates it.

    Raises:
        UserError: The folder is somebody else's and holds no queue that is shared.
    """
    if not folder.exists() or folder.stat().st_uid == os.getuid():
        return OperatorClient(folder)
    if not os.access(folder / SPOOL, os.W_OK | os.X_OK, effective_ids=True):
        owner = user_name(folder.stat().st_uid)
        raise UserError(
            f"{folder}: belongs to {owner} and is no shared queue, expected one whose operator names tenants and users"
        )
    return UserClient(folder)


class OperatorClient(Client):
    """A queue of one's own, served or not."""

    look_s = 0.5

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._reader: Reader | None = None

    @property
    def exists(self) -> bool:
        """See `Client`."""
        return (self.folder / DATABASE).is_file()

    def submit(self, submission: Submission, tenant: str | None, patience_s: float = PATIENCE_S) -> Receipt:
        """See `Client`."""
        return self._append(_request("submit", submission.tasks[0], tenant, submission.to_json()), patience_s)

    def ask(self, job: str, wish: Wish, patience_s: float = PATIENCE_S) -> Receipt:
        """See `Client`."""
        with contextlib.closing(View.read(self.folder)) as view:
            if view.job(job) is None:
                names = [job_name(one) for one in view.requests() if one.kind == "submit"]
                if job not in names:
                    raise unknown(self.folder, job, names)
        return self._append(_request(wish, job), patience_s)

    def check_tenant(self, given: str | None) -> None:
        """See `Client`."""
        if self.exists:
            with contextlib.closing(View.read(self.folder)) as view:
                tenants = view.get("tenants")
            if tenants is not None:
                check_tenant(os.getuid(), given, tenants)

    def look(self) -> Seen:
        """See `Client`."""
        if self._reader is None:
            self._reader = Reader(self.folder)
        return Seen.whole(self._reader.snapshot())

    def close(self) -> None:
        """See `Client`."""
        if self._reader is not None:
            self._reader.close()

    def _append(self, request: Request, patience_s: float) -> Receipt:
        number = append_request(self.folder, request)
        name = f"{request.job}-{number}" if request.kind == "submit" else request.job
        deadline = time.monotonic() + patience_s
        with contextlib.closing(View.read(self.folder)) as view:
            while True:
                answer = view.answer(number)
                if answer is not None:
                    return Receipt(name, answer.error)
                if view.holder.until_s < time.time() or time.monotonic() > deadline:
                    return Receipt(name, taken=False)
                time.sleep(_LOOK_S)


class UserClient(Client):
    """A queue that somebody else operates and shares."""

    look_s = 2.0

    def submit(self, submission: Submission, tenant: str | None, patience_s: float = PATIENCE_S) -> Receipt:
        """See `Client`."""
        content = submission.to_json()
        return self._send(
            new_letter(self.folder, "submit", submission.tasks[0], tenant=tenant, content=content), patience_s
        )

    def ask(self, job: str, wish: Wish, patience_s: float = PATIENCE_S) -> Receipt:
        """See `Client`."""
        sent = self._send(new_letter(self.folder, wish, job), patience_s)
        return Receipt(job, sent.error, sent.taken)

    def look(self) -> Seen | None:
        """See `Client`."""
        letter = new_letter(self.folder, "look")
        spool.send(self.folder, letter)
        try:
            reply = spool.await_reply(self.folder, letter.token, PATIENCE_S)
        finally:
            spool.withdraw(self.folder, letter.token)
        if reply is not None and reply.error:
            raise UserError(reply.error)
        return None if reply is None else reply.seen

    def _send(self, letter: spool.Letter, patience_s: float) -> Receipt:
        spool.send(self.folder, letter)
        reply = spool.await_reply(self.folder, letter.token, patience_s)
        return Receipt("", taken=False) if reply is None else Receipt(reply.job, reply.error)


def unknown(folder: Path, job: str, names: list[str]) -> UserError:
    """Returns what to say of a task that a queue has not."""
    return UserError(f"{folder}: has no task '{job}'{nearest(job, names)}, expected one that altojax queue lists")


def _request(kind: RequestKind, job: str, tenant: str | None = None, content: str = "") -> Request:
    uid = os.getuid()
    return Request(kind, job, tenant, uid, user_name(uid), time.time(), content)
