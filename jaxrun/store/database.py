"""SQLite as the journal uses it: WAL, explicit transactions, and errors a user understands."""

import contextlib
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from jaxrun.files.temporary import scratch_folder
from jaxrun.process.errors import UserError
from jaxrun.store.records import damaged

_BUSY_TIMEOUT_S = 20.0
_PRIMARY_CODE = 0xFF
_REASONS = {
    sqlite3.SQLITE_FULL: "no space left on the device, expected room to write",
    sqlite3.SQLITE_IOERR: "input/output error (full or failing disk?), expected a disk that can be written",
    sqlite3.SQLITE_READONLY: "cannot be written, expected a folder you may write to",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened, expected a readable journal in a folder you may write to",
    sqlite3.SQLITE_PERM: "permission denied, expected a folder you may write to",
    sqlite3.SQLITE_BUSY: "locked by another process for too long, expected one writer",
    sqlite3.SQLITE_PROTOCOL: "file locking does not work here, expected a local file system",
    sqlite3.SQLITE_CORRUPT: "corrupt, expected a journal as a run leaves it (start anew in another output_dir)",
    sqlite3.SQLITE_TOOBIG: "holds a record that is too large, expected a journal as a run leaves it",
    sqlite3.SQLITE_NOTADB: "corrupt or no journal at all, expected one that a run made",
}


@contextlib.contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turns what SQLite says about full disks, permissions and corrupt files into one line about `path`.

    Raises:
        UserError: In place of such an error; errors in our own SQL pass unchanged.
    """
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite repeats a damaged text in its message
        raise damaged(path, error) from error
    except sqlite3.DatabaseError as error:
        reason = _REASONS.get(getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE)
        if reason is None and isinstance(error, sqlite3.OperationalError) and "syntax error" not in str(error):
            raise damaged(path, error) from error
        if reason is None:
            raise
        raise UserError(f"{path}: {reason}") from error


def connect(path: Path) -> sqlite3.Connection:
    """Opens a database for writing, in WAL mode with ``synchronous=NORMAL``, and checks that it is sound."""
    database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        _check_sound(database, path)
    except BaseException:
        database.close()
        raise
    return database


def connect_read_only(path: Path) -> tuple[sqlite3.Connection, bool]:
    """Opens a database for reading, beside its writer if there is one.

    A WAL database needs shared memory next to it. In a folder that cannot be written a copy is read instead.

    Returns:
        The connection, and whether it reads a copy in memory, which later writes do not reach.

    Raises:
        UserError: The database, or what SQLite keeps beside it, is a link or no plain file.
    """
    for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        if os.path.lexists(file) and not stat.S_ISREG(file.lstat().st_mode):
            raise UserError(f"{file}: is a link or no plain file, expected what a run has written there")
    if os.access(path.parent, os.W_OK, effective_ids=True):
        return _connect(f"{path.resolve().as_uri()}?mode=ro"), False
    copy = _connect("file::memory:")
    try:
        with scratch_folder("journal") as folder:
            for file in (path, path.with_name(path.name + "-wal")):
                if file.exists():
                    shutil.copyfile(file, folder / file.name)
            with contextlib.closing(_connect((folder / path.name).as_uri())) as found:
                found.backup(copy)
        copy.execute("PRAGMA query_only=ON")
    except BaseException:
        copy.close()
        raise
    return copy, True


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


@contextlib.contextmanager
def transaction(database: sqlite3.Connection, *, durable: bool = False) -> Iterator[None]:
    """Runs the block as one transaction: all of it or nothing.

    Args:
        database: A connection from `connect`.
        durable: Whether the commit must survive a power cut (``synchronous=FULL``), not only a killed process.
    """
    if durable:
        database.execute("PRAGMA synchronous=FULL")
    try:
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
            database.execute("COMMIT")
        except BaseException:
            # SQLite rolls back by itself after some errors (a full disk); then there is nothing left to undo.
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
    finally:
        if durable:
            database.execute("PRAGMA synchronous=NORMAL")


def refuse_programs(database: sqlite3.Connection, path: Path) -> None:
    """Refuses views and triggers, which compute whatever their author wrote, without end if need be.

    Raises:
        UserError: There is one.
    """
    found = database.execute("SELECT name FROM sqlite_master WHERE type IN ('view', 'trigger')").fetchone()
    if found is not None:
        raise UserError(f"{path}: holds a view or trigger '{found[0]}', expected a journal as a run leaves it")


def has_table(database: sqlite3.Connection, name: str) -> bool:
    """Returns whether the database holds a table of that name."""
    found = database.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,))
    return found.fetchone() is not None


def _check_sound(database: sqlite3.Connection, path: Path) -> None:
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise UserError(f"{path}: corrupt ({' '.join(verdict.split())}), expected a journal as a run leaves it")
