"""How users' programs ask something of a queue, and learn what became of it."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from altojax.service import requests
from altojax.service.members import Caller, Members
from altojax.service.requests import Request, Requests
from altojax.service.store import Answer, View
from altojax.service.submission import Submission
from harness.errors import UserError, nearest

Wish = Literal["cancel", "pause", "resume"]
ENVIRONMENT = "ALTOJAX_QUEUE"
_LOOK_S = 0.05


def queue_folder(given: str | None, environment: Mapping[str, str] = os.environ) -> Path:
    """Returns the folder of the queue that is meant: the one given, else that of the environment, else runs/queue."""
    return Path(given or environment.get(ENVIRONMENT) or "runs/queue").expanduser().absolute()


def submit(folder: Path, submission: Submission, caller: Caller, tenant: str | None = None) -> Request:
    """Puts a task into a queue, for good; makes the queue where there is none.

    Raises:
        UserError: The queue cannot be written.
    """
    return _append(
        folder,
        Request("submit", submission.tasks[0], tenant, caller.uid, caller.user, time.time(), submission.to_json()),
    )


def ask(folder: Path, job: str, wish: Wish, caller: Caller) -> Request:
    """Asks for a task to be cancelled, paused or resumed.

    Raises:
        UserError: There is no such queue or task, or it is another tenant's.
    """
    check_known(folder, job, caller)
    return _append(folder, Request(wish, job, None, caller.uid, caller.user, time.time()))


def check_known(folder: Path, job: str, caller: Caller) -> None:
    """Refuses what is no task of a queue, and a task that is another tenant's.

    Raises:
        UserError: It is, or there is no queue.
    """
    if not (folder / requests.NAME).is_file():
        raise UserError(f"{folder}: no queue here ({requests.NAME} is missing), expected the folder of one")
    view = View.read(folder)
    listed = Requests.read(folder)
    try:
        stored = view.job(job) if view is not None else None
        if view is not None and stored is not None:
            if not (caller.operates or members_of(view).share(caller.uid, stored.tenant, stored.uid)):
                raise UserError(f"{job}: belongs to tenant '{stored.tenant}', expected a task of yours ({caller.user})")
            return
        names = {requests.job_name(one): one for one in listed.after(0) if one.kind == "submit"}
    finally:
        listed.close()
        if view is not None:
            view.close()
    if job not in names:
        raise UserError(f"{folder}: has no task '{job}'{nearest(job, names)}, expected one that altojax queue lists")
    if not (caller.operates or caller.uid == names[job].uid):
        raise UserError(f"{job}: was submitted by {names[job].user}, expected a task of yours ({caller.user})")


def members_of(view: View) -> Members:
    """Returns who belongs to which tenant, as the queue's operator said last."""
    said = view.get("members")
    return Members(os.getuid()) if said is None else Members.from_json(said)


def wait_for_answer(folder: Path, request: int, patience_s: float) -> Answer | None:
    """Returns what became of a request, or None where nobody has taken it when the patience is over.

    Raises:
        UserError: The queue cannot be read.
    """
    deadline = time.monotonic() + patience_s
    while True:
        view = View.read(folder)
        if view is not None:
            try:
                answer = view.answer(request)
                served = view.holder.until_s > time.time()
            finally:
                view.close()
            if answer is not None or not served:
                return answer
        if view is None or time.monotonic() > deadline:
            return None
        time.sleep(_LOOK_S)


def _append(folder: Path, request: Request) -> Request:
    listed = Requests.open(folder)
    try:
        return Request(**{**request.__dict__, "id": listed.append(request)})
    finally:
        listed.close()
