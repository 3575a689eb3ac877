"""Who may do what in a queue: which tenants a user may speak for, and which folders a task may touch.

A user is the OS user that the user's own program says it is. That keeps tenants apart who go through altojax, and
everybody from accidents. It does not stop somebody who may write the queue's folder and edits its files by other means:
to be safe from that, give such users a queue of their own. Whoever serves the queue, and root, may do everything.
"""

import os
import pwd
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from altojax.service.store import StoredJob
from harness.errors import UserError, nearest

Users = Mapping[str, Sequence[str]]
"""Tenant -> names of the OS users that it is for; none where it is for everybody."""


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        uid: OS user.
        user: Name of that user.
        operates: Whether this is who serves the queue.
    """

    uid: int
    user: str
    operates: bool = False

    @classmethod
    def me(cls, folder: Path) -> Self:
        """Whoever runs this process; the owner of the queue's folder operates it."""
        uid = os.getuid()
        owner = folder.stat().st_uid if folder.exists() else uid
        return cls(uid, user_name(uid), uid in (0, owner))

    @classmethod
    def operator(cls) -> Self:
        """Whoever runs this process, as the one who serves the queue."""
        return cls(os.getuid(), user_name(os.getuid()), True)


def user_name(uid: int) -> str:
    """Returns the name of an OS user, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def may_speak_for(caller: Caller, tenant: str, users: Users) -> bool:
    """Whether a user may submit in the name of a tenant, and cancel, pause, resume and look into its tasks.

    A tenant with ``users`` is for these alone. Any other that has the name of an OS user is for that user, and one that
    has not is for everybody.
    """
    if caller.operates:
        return True
    if users.get(tenant):
        return caller.user in users[tenant]
    return tenant == caller.user or not _is_user(tenant)


def tenant_of(caller: Caller, given: str | None, users: Users) -> str:
    """Returns the tenant of a submission: the one given, else the one that names the user, else the user's own.

    Raises:
        UserError: The user may not speak for it, or several name the user and none was given.
    """
    if given is None:
        naming = [name for name, of_tenant in users.items() if caller.user in of_tenant]
        if len(naming) > 1:
            raise UserError(f"queue.tenant: missing, expected one of yours: {', '.join(naming)}")
        given = naming[0] if naming else caller.user
    if not may_speak_for(caller, given, users):
        mine = [name for name in (*users, caller.user) if may_speak_for(caller, name, users)]
        raise UserError(
            f"queue.tenant: '{given}' is not for user {caller.user}{nearest(given, mine)}, "
            f"expected one of {', '.join(mine)}"
        )
    return given


def check_may_touch(caller: Caller, job: StoredJob, users: Users) -> None:
    """Refuses a user who may not act on a task.

    Raises:
        UserError: It is another tenant's.
    """
    if caller.uid != job.uid and not may_speak_for(caller, job.tenant, users):
        raise UserError(f"{job.name}: belongs to tenant '{job.tenant}', expected a task of yours ({caller.user})")


def check_reads(what: str, path: str, tenant: str, jobs: Iterable[StoredJob], queue: Path) -> None:
    """Refuses to read what another tenant's task wrote, or what the queue keeps.

    Links are followed. A folder that holds such an output is refused, too.

    Args:
        what: Names the path, for the message.
        path: What a task would read.
        tenant: The task's.
        jobs: All tasks of the queue.
        queue: The queue's folder.

    Raises:
        UserError: It is.
    """
    real = os.path.realpath(Path(path).expanduser())
    if _lies_in(real, os.path.realpath(queue)):
        raise UserError(f"{what}: {path} lies in the queue's folder {queue}, expected a file of yours")
    for job in jobs:
        if job.tenant != tenant and job.request is not None and _overlap(real, job.output_dir):
            raise UserError(f"{what}: {path} is output of tenant '{job.tenant}', expected a file of yours")


def check_writes(path: str, tenant: str, jobs: Iterable[StoredJob], live: Container[str], queue: Path) -> None:
    """Refuses an output folder that is another tenant's, or that a task which has not ended writes.

    Args:
        path: The folder, without links.
        tenant: The task's.
        jobs: All tasks of the queue.
        live: Names of those that have not ended.
        queue: The queue's folder.

    Raises:
        UserError: It is, or it lies in such a folder or around it.
    """
    if _overlap(path, os.path.realpath(queue)):
        raise UserError(f"output_dir: {path} and the queue's folder {queue} overlap, expected another folder")
    for job in jobs:
        if job.request is None or not _overlap(path, job.output_dir):
            continue
        if job.tenant != tenant:
            raise UserError(f"output_dir: {path} belongs to tenant '{job.tenant}', expected a folder of your own")
        if job.name in live:
            raise UserError(
                f"output_dir: {path} is where {job.name} writes, expected another folder, or {job.name} to end first"
            )


def _overlap(one: str, other: str) -> bool:
    return _lies_in(one, other) or _lies_in(other, one)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
