"""The crash-safe record of a run: one SQLite file in WAL mode, one writer, any number of readers.

A run's folder is its journal plus what the journal names. The order at a checkpoint: the files are written and
fsynced, then the row that names them is committed with ``synchronous=FULL``. So a row never names a file that
is not there, and a file that no row names is a leftover. Between checkpoints rows are committed with
``synchronous=NORMAL``: they survive a killed process, and a power cut costs at most what came after the checkpoint.

A run's folder must not lie on NFS: SQLite's WAL needs memory shared between its processes.
"""

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from jaxrun.config.config import config_diff
from jaxrun.files.atomic import check_unchanged, check_writable, digests_inside, inside
from jaxrun.files.folders import remove_leftovers
from jaxrun.files.temporary import remove
from jaxrun.process.errors import NothingYet, UserError
from jaxrun.store.database import connect, connect_read_only, database_errors, has_table, refuse_programs, transaction
from jaxrun.store.journal_tables import COUNT, POINT_COLUMNS, TABLES, point_columns, upgrade
from jaxrun.store.records import Checkpoint, Event, Point, record_errors, scalar, to_json
from jaxrun.store.run_folder import (
    JOURNAL_NAME,
    clear_run,
    is_held,
    refuse_exchanged,
    refuse_foreign,
    take_lock,
)

__all__ = ["FORMAT_VERSION", "Checkpoint", "Event", "Journal", "Point"]

FORMAT_VERSION = 1


class Journal:
    """The record of one run; made by `Journal.open` (the one writer) or `Journal.read` (any reader).

    Attributes:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: Path, database: sqlite3.Connection, lock: int | None = None) -> None:
        self.run_dir = run_dir
        self._path = run_dir / JOURNAL_NAME
        self._database = database
        self._lock = lock
        self._mutex = threading.RLock()

    @classmethod
    def open(
        cls,
        run_dir: str | Path,
        *,
        config_text: str,
        identity: Any,
        differences: Callable[[Any, Any], list[str]] = config_diff,
        overwrite: bool = False,
        makes: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> Self:
        """Opens a run's folder for writing: makes it, or resumes where the run stopped.

        Args:
            run_dir: The run's folder.
            config_text: What was set of the config, as YAML, for those who read the run.
            identity: What decides the run's results, as JSON data; a folder holds one run only.
            differences: What keeps a run of a second identity from resuming one of the first; else it is kept.
            overwrite: Removes what an earlier run left there. The caller has validated the new config before.
            makes: Names at the top of the folder that belong to a run; only they are ever removed.
            facts: JSON data by key for `get`, stored if the journal is new.

        Raises:
            UserError: The folder cannot be written, another process writes it, it belongs to another config or to a
                newer version, its journal is corrupt, or it holds links or files that no run made.
        """
        folder = Path(run_dir)
        check_writable(folder)
        with contextlib.ExitStack() as undo:
            lock = take_lock(folder)
            undo.callback(os.close, lock)
            refuse_foreign(folder, makes, overwrite=overwrite)
            if overwrite:
                clear_run(folder, makes)
            remove_leftovers(folder)
            with database_errors(folder / JOURNAL_NAME):
                database = connect(folder / JOURNAL_NAME)
                undo.callback(database.close)
                journal = cls(folder, database, lock)
                refuse_programs(database, folder / JOURNAL_NAME)
                if has_table(database, "meta"):
                    journal._check_version()
                    journal._resume(config_text, identity, differences)
                else:
                    journal._create(config_text, identity, facts or {})
            undo.pop_all()
        return journal

    @classmethod
    def read(cls, run_dir: str | Path, *, most_bytes: int = -1) -> Self:
        """Opens a run's folder for reading, also while the run is live; of records up to `most_bytes`, if given.

        Raises:
            UserError: There is no journal, or it is a link, corrupt or of a newer version.
        """
        path = Path(run_dir) / JOURNAL_NAME
        if not path.is_file():
            raise UserError(f"{run_dir}: no run here ({JOURNAL_NAME} is missing), expected the output_dir of a run")
        with database_errors(path):
            database, _ = connect_read_only(path)
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, most_bytes)  # a negative one changes nothing
            journal = cls(Path(run_dir), database)
            with contextlib.ExitStack() as undo:
                undo.callback(journal.close)
                refuse_programs(database, path)
                if not has_table(database, "meta"):
                    raise NothingYet(f"{path}: holds nothing yet, expected the journal of a run that has started")
                journal._check_version()
                undo.pop_all()
        return journal

    def append(self, tick: int, events: Sequence[Event] = (), points: Sequence[Point] = ()) -> None:
        """Records what happened at `tick`: all of it, or nothing if it fails. An event that has a time keeps it.

        Raises:
            UserError: Full disk or the like.
        """
        now = time.time()
        event_rows = [(int(tick), e.kind, e.task, scalar(e.trial), to_json(e.payload), e.wall_s or now) for e in events]
        point_rows = [(int(tick), *point.row()) for point in points]
        with self._transaction() as database:
            database.executemany(
                "INSERT INTO events (tick, kind, task, trial, payload, wall_s) VALUES (?,?,?,?,?,?)", event_rows
            )
            database.executemany(
                f"INSERT INTO points (tick, {', '.join(POINT_COLUMNS)}) VALUES (?{',?' * len(POINT_COLUMNS)})",
                point_rows,
            )

    def commit_checkpoint(self, tick: int, manifest: Mapping[str, Any], folders: Sequence[str]) -> None:
        """Makes a checkpoint count, once its files are written and fsynced (`folders.replace_folder`).

        Args:
            tick: The tick it was taken at; everything appended so far belongs to it.
            manifest: JSON data, given back by `last_checkpoint`.
            folders: Files or folders relative to the run's folder.

        Raises:
            UserError: A name leads outside the run's folder, the disk is full, or the like.
            FileNotFoundError: A named folder is not there.
        """
        files = {name: digests_inside(inside(self.run_dir, name)) for name in folders}
        with self._transaction(durable=True) as database:
            database.execute(
                "INSERT INTO checkpoints (tick, manifest, files, last_event, last_point) VALUES (?, ?, ?,"
                " (SELECT coalesce(max(id), 0) FROM events), (SELECT coalesce(max(id), 0) FROM points))",
                (int(tick), to_json(dict(manifest)), to_json(files)),
            )

    def last_checkpoint(self) -> Checkpoint | None:
        """Returns the newest checkpoint, its files verified, or None.

        Raises:
            UserError: A file is missing or not what was written; the line names it.
        """
        rows = self._select("SELECT tick, manifest, files FROM checkpoints ORDER BY id DESC LIMIT 1")
        if not rows:
            return None
        tick, manifest, stored = rows[0]
        with record_errors(self._path):
            files: dict[str, dict[str, str]] = json.loads(stored)
            for name, digests in files.items():
                check_unchanged(inside(self.run_dir, name), digests)
            return Checkpoint(int(tick), dict(json.loads(manifest)))

    def manifest(self) -> dict[str, Any] | None:
        """Returns the manifest of the newest checkpoint without a look at its files, for those who only watch."""
        found = self._parse(_from_json, "SELECT manifest FROM checkpoints ORDER BY id DESC LIMIT 1")
        return found[0] if found else None

    def prune_checkpoints(self, keep: int = 1) -> list[str]:
        """Forgets all but the newest `keep` checkpoints and removes the folders that only they named.

        Returns:
            The names removed.
        """
        with self._transaction(durable=True) as database:
            old = [row[0] for row in database.execute("SELECT id FROM checkpoints ORDER BY id DESC").fetchall()][keep:]
            dropped = [self._names_of(row) for row in old]
            database.executemany("DELETE FROM checkpoints WHERE id = ?", [(row,) for row in old])
        named = self.named_folders()
        removed = sorted({name for names in dropped for name in names} - named)
        for name in removed:
            remove(inside(self.run_dir, name), lenient=True)
        return removed

    def remove_unnamed(self, parent: str) -> list[str]:
        """Removes what lies in ``run_dir / parent`` and belongs to no checkpoint: leftovers of a killed process.

        Returns:
            The names removed, relative to the run's folder.
        """
        above = Path(parent).parts
        paths = [Path(name).parts for name in self.named_folders()]
        named = {parts[len(above)] for parts in paths if parts[: len(above)] == above and len(parts) > len(above)}
        if self._lock is not None:
            refuse_exchanged(self.run_dir, self._lock)
        folder = inside(self.run_dir, parent)
        removed = [] if not folder.is_dir() else sorted(e.name for e in folder.iterdir() if e.name not in named)
        for name in removed:
            remove(folder / name, lenient=True)
        return [f"{parent}/{name}" for name in removed]

    def named_folders(self) -> set[str]:
        """Returns every name, relative to the run's folder, that some checkpoint needs."""
        rows = self._select("SELECT id FROM checkpoints")
        return {name for (row,) in rows for name in self._names_of(row)}

    def rewind(self, tick: int) -> None:
        """Forgets what came after `tick`, so that a resumed run records it again.

        If a checkpoint was taken at `tick`, what was appended after it goes too, even with the same tick.
        """
        with self._transaction(durable=True) as database:
            marks = database.execute(
                "SELECT last_event, last_point FROM checkpoints WHERE tick = ? ORDER BY id DESC LIMIT 1", (int(tick),)
            ).fetchone()
            for table, mark in zip(("events", "points"), marks or (None, None), strict=True):
                database.execute(
                    f"DELETE FROM {table} WHERE tick > ? OR (? IS NOT NULL AND id > ?)", (int(tick), mark, mark)
                )
            database.execute("DELETE FROM checkpoints WHERE tick > ?", (int(tick),))

    def events(self, kind: str | None = None, *, newest: int = -1) -> list[Event]:
        """Returns the events, oldest first; only those of one kind, or so many of the newest, if given."""
        return self._parse(
            Event.from_row,
            "SELECT kind, task, trial, payload, tick, wall_s FROM events"
            " WHERE (:kind IS NULL OR kind = :kind) ORDER BY id DESC LIMIT :newest",
            {"kind": kind, "newest": newest},
        )[::-1]

    def count(self, kind: str, *, newest: int) -> dict[str | None, int]:
        """Returns how many of so many of the newest events of a kind each task has, without reading what they say."""
        return dict(self._select(COUNT, {"kind": kind, "newest": newest}))

    def points(self, *, newest: int = -1) -> list[Point]:
        """Returns the points, oldest first; only so many of the newest, if given."""
        with self._mutex, database_errors(self._path):
            columns = ", ".join(point_columns(self._database))
        return self._parse(Point.from_row, f"SELECT {columns} FROM points ORDER BY id DESC LIMIT ?", (newest,))[::-1]

    def decision_log(self) -> list[str]:
        """Returns a canonical line for each event that is a decision, the same however often the run was killed."""
        return [event.decision() for event in self.events() if event.kind not in ("run_start", "checkpoint")]

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the JSON data stored under `key`, or `default`."""
        found = self._parse(_from_json, "SELECT value FROM meta WHERE key = ?", (f"user.{key}",))
        return found[0] if found else default

    def set(self, key: str, value: Any) -> None:
        """Stores JSON data under `key`."""
        with self._transaction() as database:
            self._put(database, f"user.{key}", to_json(value))

    @property
    def config_text(self) -> str:
        """The keys that were set of the run's config, as YAML."""
        return str(self._own("config_text"))

    @property
    def identity(self) -> Any:
        """All that decides the run's results, as JSON data; None where an older version made the run."""
        found = self._parse(_from_json, "SELECT value FROM meta WHERE key = 'identity'")
        return found[0] if found else None

    @property
    def live(self) -> bool:
        """Whether a process writes the run now."""
        return is_held(self.run_dir)

    def interpreted(self) -> contextlib.AbstractContextManager[None]:
        """Turns what the block raises as it makes sense of records into one line: they are not as they were written.

        What computes with them belongs after the block, so that its own faults are not taken for theirs.
        """
        return record_errors(self._path)

    def close(self) -> None:
        """Closes the database and lets another process write. Closing twice does nothing."""
        with self._mutex:
            self._database.close()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        if self._lock is None:
            raise RuntimeError(f"{self._path}: this journal was opened for reading or is closed")
        refuse_exchanged(self.run_dir, self._lock)
        with self._mutex, database_errors(self._path), transaction(self._database, durable=durable):
            yield self._database

    def _select(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        with self._mutex, database_errors(self._path):
            return self._database.execute(query, values).fetchall()

    def _parse[Row](
        self, row: Callable[[tuple[Any, ...]], Row], query: str, values: Sequence[Any] | Mapping[str, Any] = ()
    ) -> list[Row]:
        rows = self._select(query, values)
        with record_errors(self._path):
            return [row(one) for one in rows]

    def _own(self, key: str) -> str | None:
        rows = self._select("SELECT value FROM meta WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    @staticmethod
    def _put(database: sqlite3.Connection, key: str, value: str) -> None:
        database.execute(
            "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )

    def _names_of(self, checkpoint: int) -> list[str]:
        return list(self._parse(_from_json, "SELECT files FROM checkpoints WHERE id = ?", (checkpoint,))[0])

    def _create(self, config_text: str, identity: Any, facts: Mapping[str, Any]) -> None:
        with self._transaction(durable=True) as database:
            for statement in TABLES:
                database.execute(statement)
            self._put(database, "format_version", str(FORMAT_VERSION))
            self._put(database, "config_text", config_text)
            self._put(database, "identity", to_json(identity))
            for key, value in facts.items():
                self._put(database, f"user.{key}", to_json(value))

    def _check_version(self) -> None:
        with record_errors(self._path):
            version = int(self._own("format_version") or 0)
        if version > FORMAT_VERSION:
            newer = f"written by a newer version (journal format {version}), expected format {FORMAT_VERSION}"
            raise UserError(f"{self._path}: {newer}: upgrade, or use another output_dir")

    def _resume(self, config_text: str, identity: Any, differences: Callable[[Any, Any], list[str]]) -> None:
        stored, given = self.identity, json.loads(to_json(identity))
        with record_errors(self._path):
            changed = differences(stored, given) if stored else ["what an older version did not keep"]
        if changed:
            named = ", ".join(changed[:8]) + (f", … ({len(changed) - 8} more)" if len(changed) > 8 else "")
            what = f"holds a run whose config differs in {named}"
            raise UserError(f"{self.run_dir}: {what}; expected the same config, another output_dir or overwrite=true")
        with self._transaction(durable=True) as database:
            self._put(database, "config_text", config_text)
            self._put(database, "identity", to_json(identity))
            upgrade(database)


def _from_json(row: tuple[Any, ...]) -> Any:
    return json.loads(row[0])
