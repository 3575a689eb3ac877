"""Requests as files: how users of a shared queue ask, and are answered, without access to anything else of it.

A request lies in the queue's ``spool``, which takes files from everybody and lists them to the operator alone. Its
owner is who asks: nobody can give a file away. So that nobody can hand in somebody else's file either, moved or linked
there, it has one name only, and says itself how it is called and for which queue it was written. The answer lies under
the same name in ``answers``, and is there before the request is removed.
"""

import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from altojax.cluster.service.queue.folder import ANSWERS, SPOOL
from altojax.cluster.service.queue.requests import RequestKind
from altojax.cluster.service.queue.visibility import Seen
from jaxrun.config.config import StrictModel
from jaxrun.files.atomic import user_errors
from jaxrun.process.errors import UserError

MOST_BYTES = 2**20
"""Bytes of a request, at most."""
TOKEN = re.compile(r"[0-9a-f]{32}")
"""Names of requests."""
_UNFINISHED = ".new-"
_FORGOTTEN_S = 3600.0
"""Seconds after which a file that was never finished, or an answer, is removed."""
_LOOK_S = 0.05


_Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9._-]*$", max_length=200)]


class Letter(StrictModel):
    """A request as its file holds it.

    Attributes:
        queue: Folder of the queue that it is for, without links.
        token: The file's name.
        kind: What is wanted; ``look`` is to see the queue.
        job: As in `altojax.cluster.service.queue.requests.Request`.
        tenant: The same.
        content: The same.
        asked_s: When, in seconds since the epoch, as the user's clock shows it.
    """

    queue: str
    token: str
    kind: RequestKind | Literal["look"]
    job: _Name = ""
    tenant: _Name | None = None
    content: str = ""
    asked_s: Annotated[float, pydantic.Field(allow_inf_nan=False)] = 0.0


@dataclass(frozen=True)
class Reply:
    """The answer to a request.

    Attributes:
        job: Name of the task that it is about; empty where a submission was refused.
        error: Why it was refused, in one line; empty where it was not.
        seen: What was asked to be seen.
    """

    job: str = ""
    error: str = ""
    seen: Seen | None = None


@dataclass(frozen=True)
class SpoolFile:
    """A file of the spool.

    Attributes:
        token: Its name.
        uid: OS user who owns it.
        changed_s: When it was put there, as the kernel says, in seconds since the epoch.
    """

    token: str
    uid: int
    changed_s: float


_REPLY: pydantic.TypeAdapter[Reply] = pydantic.TypeAdapter(Reply)


def send(folder: Path, letter: Letter) -> None:
    """Puts a request into a shared queue, whole and for good.

    Raises:
        UserError: It is too large, or the queue is not shared.
    """
    content = letter.model_dump_json().encode()
    if len(content) > MOST_BYTES:
        raise UserError(f"the task has {len(content):,} bytes as it is sent, expected at most {MOST_BYTES:,}")
    path = folder / SPOOL / letter.token
    unfinished = path.with_name(_UNFINISHED + letter.token)
    with user_errors(path):
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)  # whoever serves must be able to read it, whatever the user's mask
            file.write(content)
            file.flush()
            os.fsync(descriptor)
            unfinished.rename(path)
            os.fsync(descriptor)  # the spool cannot be opened to make the name last; this does on journaling systems


def new_letter(folder: Path, kind: RequestKind | Literal["look"], job: str = "", **more: str | None) -> Letter:
    """Returns a request for a queue under a name that nobody can guess."""
    return Letter.model_validate(
        {"queue": os.path.realpath(folder), "token": secrets.token_hex(16), "kind": kind, "job": job}
        | {"asked_s": time.time(), **more}
    )


def await_reply(folder: Path, token: str, patience_s: float) -> Reply | None:
    """Returns the answer to a request, or None where nobody has taken it when the patience is over.

    Raises:
        UserError: The request is gone, and so is its answer.
    """
    deadline = time.monotonic() + patience_s
    while _waits(folder / SPOOL / token):
        if time.monotonic() > deadline:
            return None
        time.sleep(_LOOK_S)
    try:
        with user_errors(folder / ANSWERS):
            return _REPLY.validate_json((folder / ANSWERS / token).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{folder}: the request was taken and its answer is gone, see altojax queue") from error


def withdraw(folder: Path, token: str) -> None:
    """Takes back a request that nobody has taken."""
    with user_errors(folder / SPOOL):
        (folder / SPOOL / token).unlink(missing_ok=True)


def listed(folder: Path, known: Mapping[str, SpoolFile]) -> Iterator[SpoolFile]:
    """Yields what lies in the spool and is called like a request; removes what was never finished.

    Args:
        folder: The queue's.
        known: What was found before, by name; it is not looked at again.
    """
    with os.scandir(folder / SPOOL) as entries:
        for entry in entries:
            if entry.name in known:
                yield known[entry.name]
                continue
            try:
                found = entry.stat(follow_symlinks=False)
                if TOKEN.fullmatch(entry.name):
                    yield SpoolFile(entry.name, found.st_uid, found.st_ctime)
                elif time.time() - found.st_ctime > _FORGOTTEN_S:
                    Path(entry.path).unlink()
            except OSError:  # gone, or a folder: what cannot be removed stays and is looked at no further
                continue


def receive(folder: Path, found: SpoolFile) -> Letter:
    """Reads a request.

    Raises:
        UserError: The file is none, or was not written by its owner for this queue under this name.
        FileNotFoundError: It is gone.
    """
    path = folder / SPOOL / found.token
    with user_errors(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(f"{SPOOL}/{found.token}: {error.strerror}, expected a plain file") from error
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
                raise UserError(f"{SPOOL}/{found.token}: no plain file of one name, expected one as altojax writes it")
            if about.st_uid != found.uid:
                raise UserError(f"{SPOOL}/{found.token}: changed its owner, expected it to stay")
            content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UserError(f"{SPOOL}/{found.token}: larger than {MOST_BYTES:,} bytes, expected a request")
    try:
        letter = Letter.model_validate_json(content)
    except pydantic.ValidationError as error:
        said = error.errors()[0]["msg"]
        raise UserError(f"{SPOOL}/{found.token}: not as altojax writes a request ({said})") from error
    if (letter.token, letter.queue) != (found.token, os.path.realpath(folder)):
        raise UserError(
            f"{SPOOL}/{found.token}: was written as {letter.token} for {letter.queue}, expected one for this queue"
        )
    return letter


def reply(folder: Path, token: str, content: Reply) -> None:
    """Answers a request, and removes it.

    Raises:
        OSError: The answer cannot be written, or the request cannot be removed.
    """
    path = folder / ANSWERS / token
    unfinished = path.with_name(_UNFINISHED + token)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o644)
        file.write(_REPLY.dump_json(content))
    unfinished.rename(path)
    (folder / SPOOL / token).unlink(missing_ok=True)


def forget(folder: Path, token: str) -> None:
    """Removes an answer."""
    (folder / ANSWERS / token).unlink(missing_ok=True)


def forget_old(folder: Path) -> None:
    """Removes answers that nobody waits for any more."""
    with os.scandir(folder / ANSWERS) as entries:
        for entry in entries:
            if time.time() - entry.stat(follow_symlinks=False).st_mtime > _FORGOTTEN_S:
                Path(entry.path).unlink()


def _waits(path: Path) -> bool:
    """Whether a request exists: opened, since that asks the server where the file system is a remote one."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW))
    except FileNotFoundError:
        return False
    return True
