"""Requests of users: an append-only table of the queue's database."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

RequestKind = Literal["submit", "cancel", "pause", "resume"]

SCHEMA = (
    "CREATE TABLE requests (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, job TEXT NOT NULL, tenant TEXT,"
    " uid INTEGER NOT NULL, user TEXT NOT NULL, made_s REAL NOT NULL, content TEXT NOT NULL, token TEXT UNIQUE)"
)
_COLUMNS = "kind, job, tenant, uid, user, made_s, content, token"


@dataclass(frozen=True)
class Request:
    """One wish of one user.

    Attributes:
        kind: What is wanted.
        job: Of which task; for a submission the word its name begins with.
        tenant: In whose name, where the user said so.
        uid: OS user who asked, as the kernel says: who owned the request's file, or ran the process that may write
            the queue's database.
        user: Name of that user.
        made_s: When, in seconds since the epoch.
        content: For a submission what was submitted, as JSON.
        token: Name of the file that it came in; None where it was written into the database.
        id: Its number, given when it is appended; they ascend in the order in which requests are to be taken.
    """

    kind: RequestKind
    job: str
    tenant: str | None
    uid: int
    user: str
    made_s: float
    content: str = ""
    token: str | None = None
    id: int = 0


def job_name(request: Request) -> str:
    """Returns the name of the task that a request is about; a new one is named by a word and a number."""
    return f"{request.job}-{request.id}" if request.kind == "submit" else request.job


def append(database: sqlite3.Connection, requests: Iterable[Request]) -> list[int]:
    """Adds requests inside a transaction of the caller; returns their numbers."""
    numbers = []
    for one in requests:
        row = (one.kind, one.job, one.tenant, one.uid, one.user, one.made_s, one.content, one.token)
        added = database.execute(f"INSERT INTO requests ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)", row)
        assert added.lastrowid is not None
        numbers.append(added.lastrowid)
    return numbers


def after(database: sqlite3.Connection, number: int, most: int) -> list[Request]:
    """Returns the requests above a number, oldest first; at most `most` of them, all where that is -1."""
    found = database.execute(
        f"SELECT {_COLUMNS}, id FROM requests WHERE id > ? ORDER BY id LIMIT ?", (number, most)
    ).fetchall()
    return [Request(*row) for row in found]


def number_of(database: sqlite3.Connection, token: str) -> int | None:
    """Returns the number of the request that came in a file of that name, or None."""
    row = database.execute("SELECT id FROM requests WHERE token = ?", (token,)).fetchone()
    return None if row is None else int(row[0])
