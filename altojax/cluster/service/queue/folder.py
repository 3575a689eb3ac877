"""The folder of a queue: what lies in it, and who may enter.

All of it belongs to the user who serves. A queue without tenants is closed to others. In one that is shared they may
pass through the folder (``0711``), leave requests under names that nobody can guess or list (``spool``, ``1733``), and
read answers whose names they know (``answers``, ``0711``); everything else is the operator's alone.
"""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from altojax.cluster.tenancy.members import user_name
from jaxrun.files.atomic import user_errors
from jaxrun.process.errors import UserError
from jaxrun.store.database import database_errors, transaction

DATABASE = "queue.db"
SPOOL = "spool"
ANSWERS = "answers"
_OLD = "requests.db"
"""The database in which earlier versions kept requests, for whoever could write the folder."""


def check_queue(folder: Path) -> None:
    """Refuses a folder that holds no queue, or one of an earlier version.

    Raises:
        UserError: It does.
    """
    _refuse_old(folder)
    if not (folder / DATABASE).is_file():
        raise UserError(f"{folder}: no queue here ({DATABASE} is missing), expected the folder of one")


def make_database(folder: Path, fill: Callable[[sqlite3.Connection], None]) -> None:
    """Makes a queue where there is none, closed to others; once however many processes ask for it at the same time.

    Args:
        folder: The queue's.
        fill: Makes the tables.

    Raises:
        UserError: The folder cannot be made or written, is somebody else's, or holds a queue of an earlier version.
    """
    _refuse_old(folder)
    path = folder / DATABASE
    with user_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_foreign(folder)
        if path.exists():
            return
        with _locked(folder):
            if path.exists():
                return
            folder.chmod(0o700)
            fresh = path.with_name(f"{DATABASE}.new")
            for end in ("", "-wal", "-shm"):  # a log that a killed process left would be taken for this one's
                fresh.with_name(f"{fresh.name}{end}").unlink(missing_ok=True)
            os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            with database_errors(path):
                database = sqlite3.connect(fresh, isolation_level=None)
                try:
                    database.execute("PRAGMA journal_mode=WAL")
                    with transaction(database, durable=True):
                        fill(database)
                finally:
                    database.close()
            fresh.rename(path)


def set_doors(folder: Path, *, shared: bool) -> None:
    """Opens a queue to requests of other users, or closes it to them.

    Raises:
        UserError: The folder is somebody else's, or cannot be changed.
    """
    with user_errors(folder):
        refuse_foreign(folder)
        if shared:
            for name, mode in ((SPOOL, 0o1733), (ANSWERS, 0o711)):
                (folder / name).mkdir(mode=0o700, exist_ok=True)
                (folder / name).chmod(mode)
        folder.chmod(0o711 if shared else 0o700)


def _refuse_old(folder: Path) -> None:
    with user_errors(folder):
        if (folder / _OLD).exists():
            raise UserError(
                f"{folder}: a queue of an earlier version ({_OLD}), expected a new folder; the version that made this "
                "one brings its tasks to their end, and runs in their output_dir resume when they are submitted again"
            )


def refuse_foreign(folder: Path) -> None:
    """Refuses a folder of somebody else to who is to serve a queue there.

    Raises:
        UserError: It is one.
    """
    if (owner := folder.stat().st_uid) != os.getuid():
        mine = user_name(os.getuid())
        raise UserError(f"{folder}: belongs to {user_name(owner)}, expected a folder of {mine}, who is to serve it")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
