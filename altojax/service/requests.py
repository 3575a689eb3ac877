"""What users ask of a queue: an append-only list that anyone who may write the queue's folder adds to."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from harness.database import connect, connect_read_only, database_errors, transaction
from harness.files import user_errors

NAME = "requests.db"
Kind = Literal["submit", "cancel", "pause", "resume"]

_SCHEMA = (
    "CREATE TABLE requests (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, job TEXT NOT NULL,"
    " tenant TEXT, uid INTEGER NOT NULL, user TEXT NOT NULL, made_s REAL NOT NULL, content TEXT NOT NULL)"
)


@dataclass(frozen=True)
class Request:
    """One wish of one user.

    Attributes:
        kind: What is wanted.
        job: Of which task; for a submission the word its name begins with.
        tenant: In whose name, where the user said so.
        uid: OS user who asked, as that user's own program says: see `altojax.service.rights`.
        user: Name of that user.
        made_s: When, in seconds since the epoch.
        content: For a submission what was submitted, as JSON.
        id: Its number, given when it is appended; they ascend in the order in which requests are to be taken.
    """

    kind: Kind
    job: str
    tenant: str | None
    uid: int
    user: str
    made_s: float
    content: str = ""
    id: int = 0


def job_name(request: Request) -> str:
    """Returns the name of the task that a request is about; a new one is named by a word and a number."""
    return f"{request.job}-{request.id}" if request.kind == "submit" else request.job


class Requests:
    """The list of a queue's requests."""

    def __init__(self, folder: Path, database: sqlite3.Connection, is_copy: bool = False) -> None:
        """Reads and writes through a connection.

        Args:
            folder: The queue's.
            database: The connection.
            is_copy: Whether it reads a copy, which later requests do not reach.
        """
        self._path, self._database, self.is_copy = folder / NAME, database, is_copy

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Opens it to append to; makes the queue's folder where there is none.

        Raises:
            UserError: The folder cannot be written, or the list is corrupt.
        """
        make_database(folder, NAME, [_SCHEMA])
        with database_errors(folder / NAME):
            return cls(folder, connect(folder / NAME))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Opens the list of a queue that is there to read it.

        Raises:
            UserError: It is corrupt.
        """
        with database_errors(folder / NAME):
            return cls(folder, *connect_read_only(folder / NAME))

    def append(self, request: Request) -> int:
        """Adds a request for good, whatever becomes of this process or the power; returns its number.

        Raises:
            UserError: Full disk, no permission.
        """
        row = (request.kind, request.job, request.tenant, request.uid, request.user, request.made_s, request.content)
        with database_errors(self._path), transaction(self._database, durable=True):
            added = self._database.execute(
                "INSERT INTO requests (kind, job, tenant, uid, user, made_s, content) VALUES (?,?,?,?,?,?,?)", row
            )
        assert added.lastrowid is not None
        return added.lastrowid

    def after(self, number: int, *, most: int = -1) -> list[Request]:
        """Returns the requests above a number, oldest first."""
        with database_errors(self._path):
            rows = self._database.execute(
                "SELECT kind, job, tenant, uid, user, made_s, content, id FROM requests WHERE id > ?"
                " ORDER BY id LIMIT ?",
                (number, most),
            ).fetchall()
        return [Request(*row) for row in rows]

    def close(self) -> None:
        """Lets go of the file."""
        self._database.close()


def make_database(folder: Path, name: str, schema: Sequence[str]) -> None:
    """Makes a database of a queue where it is missing, once however many processes ask for it at the same time.

    It may be written by whom the folder may be written by: the owner alone, or a group.

    Raises:
        UserError: The folder cannot be made or written.
    """
    path = folder / name
    if path.exists():
        return
    with user_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if path.exists():
                return
            fresh = path.with_name(f"{name}.new")
            for end in ("", "-wal", "-shm"):  # a log that a killed process left would be taken for this one's
                fresh.with_name(f"{fresh.name}{end}").unlink(missing_ok=True)
            with database_errors(path):
                database = sqlite3.connect(fresh, isolation_level=None)
                try:
                    database.execute("PRAGMA journal_mode=WAL")
                    with transaction(database, durable=True):
                        for statement in schema:
                            database.execute(statement)
                finally:
                    database.close()
            fresh.chmod(0o660 if folder.stat().st_mode & 0o020 else 0o600)
            fresh.rename(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
