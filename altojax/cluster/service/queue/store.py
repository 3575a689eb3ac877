"""The queue's store, one SQLite file of its operator: requests, and the orchestrator's records and answers.

An event and the decisions that it led to are one transaction, made to last before any of them is carried out. So the
records alone say what the queue's state is, and an orchestrator that is killed at any instant is followed by one that
decides the same. `carried` says up to which record decisions were carried out: what lies beyond it may or may not have
been, and is carried out again.
"""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pydantic

from altojax.cluster.scheduling.records import Record, from_json, to_json
from altojax.cluster.service.queue import lease, requests
from altojax.cluster.service.queue.folder import DATABASE, check_queue, make_database
from altojax.cluster.service.queue.lease import Holder
from altojax.cluster.service.queue.requests import Request
from jaxrun.process.errors import UserError
from jaxrun.store.database import connect, connect_read_only, database_errors, transaction
from jaxrun.store.records import record_errors

FORMAT_VERSION = 2

_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE records (id INTEGER PRIMARY KEY, record TEXT NOT NULL)",
    "CREATE TABLE jobs (name TEXT PRIMARY KEY, request INTEGER, tenant TEXT NOT NULL, uid INTEGER NOT NULL,"
    " user TEXT NOT NULL, output_dir TEXT NOT NULL, content TEXT NOT NULL, members TEXT NOT NULL)",
    "CREATE TABLE answers (request INTEGER PRIMARY KEY, job TEXT NOT NULL, error TEXT NOT NULL)",
    "CREATE TABLE profiles (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    requests.SCHEMA,
    lease.SCHEMA,
)

_COLUMNS = ("name", "request", "tenant", "uid", "user", "output_dir", "content", "members")


@dataclass(frozen=True)
class StoredJob:
    """A task as it was submitted, or several that were merged.

    Attributes:
        name: Names it in the queue.
        request: Number of its submission; None for a merged one.
        tenant: Whose it is.
        uid: OS user who submitted it.
        user: Name of that user.
        output_dir: Its run's folder, absolute.
        content: What was submitted, as JSON (`altojax.cluster.service.queue.submission.Submission`).
        members: Names of the tasks that were merged into this one.
    """

    name: str
    request: int | None
    tenant: str
    uid: int
    user: str
    output_dir: str
    content: str
    members: tuple[str, ...] = ()


_JOB = pydantic.TypeAdapter(StoredJob)


@dataclass(frozen=True)
class Answer:
    """The outcome of a request.

    Attributes:
        request: Its number.
        job: The task that it is about; empty where a submission was refused.
        error: Why it was refused, in one line; empty where it was not.
    """

    request: int
    job: str
    error: str = ""


class View:
    """Reads a queue's store, beside its orchestrator.

    Attributes:
        folder: The queue's.
        path: Its database.
        is_copy: Whether a copy is read, which later writes do not reach.
    """

    def __init__(self, folder: Path, database: sqlite3.Connection, is_copy: bool = False) -> None:
        """Reads through a connection.

        Args:
            folder: The queue's.
            database: The connection.
            is_copy: Whether it reads a copy, which later writes do not reach.
        """
        self.folder, self.path, self._database = folder, folder / DATABASE, database
        self.is_copy = is_copy

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Opens it.

        Raises:
            UserError: There is none, it is corrupt, or another version wrote it.
        """
        check_queue(folder)
        with database_errors(folder / DATABASE):
            view = cls(folder, *connect_read_only(folder / DATABASE))
            with contextlib.ExitStack() as undo:
                undo.callback(view.close)
                view._check_version()
                undo.pop_all()
        return view

    @contextlib.contextmanager
    def at_one_instant(self) -> Iterator[None]:
        """Makes all that is read in the block belong together."""
        with database_errors(self.path):
            self._database.execute("BEGIN")
            try:
                yield
            finally:
                self._database.execute("COMMIT")

    def requests(self, after: int = 0, *, most: int = -1) -> list[Request]:
        """Returns the requests above a number, oldest first."""
        with database_errors(self.path):
            return requests.after(self._database, after, most)

    def records(self, after: int = 0) -> list[tuple[int, Record]]:
        """Returns the records above a number with their numbers, oldest first."""
        rows = self._select("SELECT id, record FROM records WHERE id > ? ORDER BY id", (after,))
        with record_errors(self.path):
            return [(number, from_json(text)) for number, text in rows]

    def jobs(self, after: int = 0) -> list[tuple[int, StoredJob]]:
        """Returns the tasks above a row number with their row numbers, in the order in which they were stored."""
        rows = self._select(f"SELECT rowid, {', '.join(_COLUMNS)} FROM jobs WHERE rowid > ? ORDER BY rowid", (after,))
        with record_errors(self.path):
            return [(int(row[0]), _job(row[1:])) for row in rows]

    def job(self, name: str) -> StoredJob | None:
        """Returns one task, or None."""
        rows = self._select(f"SELECT {', '.join(_COLUMNS)} FROM jobs WHERE name = ?", (name,))
        with record_errors(self.path):
            return _job(rows[0]) if rows else None

    def answer(self, request: int) -> Answer | None:
        """Returns what became of a request; None where it was not taken yet."""
        rows = self._select("SELECT request, job, error FROM answers WHERE request = ?", (request,))
        return Answer(*rows[0]) if rows else None

    def refusals(self) -> list[Answer]:
        """Returns the requests that were refused, oldest first."""
        rows = self._select("SELECT request, job, error FROM answers WHERE error != '' ORDER BY request")
        return [Answer(*row) for row in rows]

    def profiles(self) -> list[str]:
        """Returns the measured speeds, each as JSON."""
        return [value for (value,) in self._select("SELECT value FROM profiles ORDER BY key")]

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the JSON data stored under a key, or `default`."""
        rows = self._select("SELECT value FROM meta WHERE key = ?", (key,))
        with record_errors(self.path):
            return json.loads(rows[0][0]) if rows else default

    @property
    def made_s(self) -> float:
        """Time of the queue's creation, in seconds since the epoch."""
        with record_errors(self.path):
            return float(self.get("made_s"))

    @property
    def taken(self) -> int:
        """Number of the newest request that was taken."""
        with record_errors(self.path):
            taken, answered = int(self.get("taken", 0)), self._select("SELECT coalesce(max(request), 0) FROM answers")
            if answered[0][0] > taken:
                raise ValueError(f"request {answered[0][0]} was answered and not taken")
        return taken

    @property
    def holder(self) -> Holder:
        """The present orchestrator, or the last one."""
        with database_errors(self.path), record_errors(self.path):
            return lease.holder_of(self._database)

    def close(self) -> None:
        """Lets go of the file. Closing twice does nothing."""
        self._database.close()

    def _select(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with database_errors(self.path):
            return self._database.execute(query, values).fetchall()

    def _check_version(self) -> None:
        with record_errors(self.path):
            version = int(self.get("format_version"))
        if version != FORMAT_VERSION:
            other = "a newer" if version > FORMAT_VERSION else "an earlier"
            raise UserError(
                f"{self.path}: written by {other} version (queue format {version}), expected format {FORMAT_VERSION}"
            )


class Store(View):
    """The store as its one writer has it, who holds the lease.

    Attributes:
        token: Fencing token of the lease.
    """

    token = 0
    _lock: int | None = None

    @classmethod
    def take(cls, folder: Path) -> Self:
        """Makes a queue's store where there is none, and takes its lease.

        Raises:
            UserError: Another orchestrator holds it, or the folder cannot be written.
        """
        make_database(folder, _fill)
        with contextlib.ExitStack() as undo:
            lock = lease.open_lock(folder)
            undo.callback(os.close, lock)
            with database_errors(folder / DATABASE):
                database = connect(folder / DATABASE)
                undo.callback(database.close)
                store = cls(folder, database)
                store._check_version()
                with transaction(database, durable=True), record_errors(store.path):
                    store.token = lease.take(database, folder, lock, time.time())
            store._lock = lock
            undo.pop_all()
        return store

    def commit(
        self,
        records: Iterable[Record],
        *,
        jobs: Iterable[StoredJob] = (),
        answers: Iterable[Answer] = (),
        taken: int | None = None,
    ) -> int:
        """Stores events, the decisions that they led to and what goes with them: all of it for good, or nothing.

        Args:
            records: In their order.
            jobs: Tasks that are new with them.
            answers: What became of requests.
            taken: Number of the newest request that has been taken.

        Returns:
            Number of the last record.

        Raises:
            UserError: Another orchestrator has taken over, or the disk is full.
        """
        with self._transaction(durable=True):
            self._database.executemany(
                "INSERT INTO records (record) VALUES (?)", [(to_json(record),) for record in records]
            )
            self._database.executemany(
                f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' for _ in _COLUMNS)})",
                [[_plain(getattr(job, column)) for column in _COLUMNS] for job in jobs],
            )
            self._database.executemany(
                "INSERT INTO answers (request, job, error) VALUES (?,?,?)",
                [(a.request, a.job, a.error) for a in answers],
            )
            if taken is not None:
                self._set("taken", taken)
            return int(self._select("SELECT coalesce(max(id), 0) FROM records")[0][0])

    def append(self, new: Sequence[Request]) -> list[int]:
        """Stores requests for good; returns their numbers.

        Raises:
            UserError: Another orchestrator has taken over, or the disk is full.
        """
        with self._transaction(durable=True):
            return requests.append(self._database, new)

    def number_of(self, token: str) -> int | None:
        """Returns the number of the request that came in a file of that name, or None."""
        with database_errors(self.path):
            return requests.number_of(self._database, token)

    def mark_carried(self, number: int) -> None:
        """Notes that the decisions up to a record were carried out."""
        with self._transaction():
            self._set("carried", number)

    @property
    def carried(self) -> int:
        """Number of the record up to which decisions are known to have been carried out."""
        with record_errors(self.path):
            return int(self.get("carried", 0))

    def set(self, key: str, value: Any) -> None:
        """Stores JSON data under a key, in place of what was there."""
        with self._transaction():
            self._set(key, value)

    def put_profiles(self, profiles: Mapping[str, str]) -> None:
        """Stores measured speeds, each as JSON under its key, in place of older ones."""
        with self._transaction():
            self._database.executemany(
                "INSERT OR REPLACE INTO profiles (key, value) VALUES (?,?)", list(profiles.items())
            )

    def renew(self) -> None:
        """Makes the lease last longer.

        Raises:
            UserError: Another orchestrator has taken over.
        """
        with self._transaction():
            lease.renew(self._database, time.time() + lease.SPAN_S)

    def release(self) -> None:
        """Gives the lease back and lets go of the file; one that was taken over just lets go."""
        with contextlib.suppress(UserError), self._transaction():
            lease.renew(self._database, 0.0)
        self.close()

    def close(self) -> None:
        """Lets go of the file and keeps the lease, as a process does that is killed."""
        super().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[None]:
        with database_errors(self.path), transaction(self._database, durable=durable):
            with record_errors(self.path):
                lease.check(self._database, self.folder, self.token)
            yield

    def _set(self, key: str, value: Any) -> None:
        self._database.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?,?)", (key, json.dumps(value)))


def append_request(folder: Path, request: Request) -> int:
    """Adds a request of the operator's for good, served or not; makes the queue where there is none.

    Returns:
        Its number.

    Raises:
        UserError: The queue cannot be written, or is somebody else's.
    """
    make_database(folder, _fill)
    with database_errors(folder / DATABASE):
        database = connect(folder / DATABASE)
        try:
            with transaction(database, durable=True):
                return requests.append(database, [request])[0]
        finally:
            database.close()


def _fill(database: sqlite3.Connection) -> None:
    for statement in _SCHEMA:
        database.execute(statement)
    for key, value in (("made_s", time.time()), ("format_version", FORMAT_VERSION)):
        database.execute("INSERT INTO meta (key, value) VALUES (?,?)", (key, json.dumps(value)))


def _job(row: Sequence[Any]) -> StoredJob:
    values = dict(zip(_COLUMNS, row, strict=True))
    return _JOB.validate_python({**values, "members": tuple(json.loads(values["members"]))})


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, tuple) else value
