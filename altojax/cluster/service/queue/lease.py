"""The orchestrator's lease with a fencing token: a process that was taken for dead can write no more.

The token goes up with every holder. Each transaction of a holder compares its own with the one that is stored, inside
the transaction: one that slept through its lease, or was replaced, is refused whatever it believes.
"""

import fcntl
import os
import socket
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from jaxrun.files.atomic import user_errors
from jaxrun.process.errors import UserError

SPAN_S = 15.0
"""Seconds that a lease holds without renewal."""

LOCK = "serve.lock"

SCHEMA = (
    "CREATE TABLE lease (one INTEGER PRIMARY KEY CHECK (one = 1), token INTEGER, holder TEXT, host TEXT, until_s REAL)"
)


@dataclass(frozen=True)
class Holder:
    """The holder of the lease.

    Attributes:
        token: Its fencing token; 0 where nobody ever had one.
        name: Process and host, for people.
        host: Its host.
        until_s: When the lease runs out, in seconds since the epoch; 0 once it was given back.
    """

    token: int = 0
    name: str = ""
    host: str = ""
    until_s: float = 0.0


def holder_of(database: sqlite3.Connection) -> Holder:
    """Returns who has the lease, or had it last."""
    row = database.execute("SELECT token, holder, host, until_s FROM lease").fetchone()
    return Holder() if row is None else Holder(int(row[0]), str(row[1]), str(row[2]), float(row[3]))


def take(database: sqlite3.Connection, folder: Path, lock: int, now_s: float) -> int:
    """Takes the lease, inside a transaction of the caller; returns the token.

    A lease runs out by itself. On one host it need not: the kernel drops the lock of a process that has died.

    Args:
        database: The queue's.
        folder: The queue's, for the message.
        lock: What `open_lock` returned.
        now_s: Seconds since the epoch.

    Raises:
        UserError: Another orchestrator has it.
    """
    last, here = holder_of(database), socket.gethostname()
    refuse_held(last, folder, lock, now_s)
    row = (last.token + 1, f"process {os.getpid()} on {here}", here, now_s + SPAN_S)
    database.execute("INSERT OR REPLACE INTO lease (one, token, holder, host, until_s) VALUES (1,?,?,?,?)", row)
    return last.token + 1


def refuse_held(last: Holder, folder: Path, lock: int, now_s: float) -> None:
    """Refuses a queue that somebody orchestrates; arguments as for `take`, with who had the lease last.

    Raises:
        UserError: Somebody does.
    """
    alone = _locked(lock)
    if last.until_s > now_s and not (alone and last.host == socket.gethostname()):
        raise UserError(f"{folder}: {last.name} orchestrates this queue, expected one orchestrator at a time")


def check(database: sqlite3.Connection, folder: Path, token: int) -> None:
    """Refuses a holder that is no longer the newest; to be called inside each of its transactions.

    Raises:
        UserError: Another orchestrator has taken the lease since.
    """
    last = holder_of(database)
    if last.token != token:
        raise UserError(
            f"{folder}: {last.name} has taken this queue over (token {last.token}, given {token}), "
            "expected the newest orchestrator"
        )


def renew(database: sqlite3.Connection, until_s: float) -> None:
    """Moves the end of the lease, inside a transaction that has checked the token; to the past gives it back."""
    database.execute("UPDATE lease SET until_s = ?", (until_s,))


def open_lock(folder: Path) -> int:
    """Opens the file whose lock an orchestrator holds while it lives.

    Raises:
        UserError: The folder cannot be written.
    """
    with user_errors(folder / LOCK):
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
