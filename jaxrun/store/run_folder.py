"""The run folder: its files, its one writer, and the replacement of an old run."""

import contextlib
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jaxrun.files.atomic import user_errors
from jaxrun.files.home import from_home
from jaxrun.files.temporary import temporary_folder
from jaxrun.process.errors import UserError

JOURNAL_NAME = "journal.db"
LOCK_NAME = "journal.lock"

_JOURNAL = (f"{JOURNAL_NAME}-shm", f"{JOURNAL_NAME}-wal", JOURNAL_NAME)
MOST_ENTRIES = 1_000_000
"""Most files and folders of a run, beside those of trackers: a queue looks at each before it takes a run."""
_TRACKED = ("tensorboard", "wandb", "trackio")
_TRIES, _PAUSE_S = 10, 0.02


class Occupied(UserError):
    """Another process is the writer of a run's folder."""


def take_lock(folder: Path) -> int:
    """Makes this process the one writer of a run's folder until the returned descriptor is closed.

    Raises:
        Occupied: Another process is the writer.
        UserError: The file system has no locks, or the lock is a link or no plain file.
    """
    path = folder / LOCK_NAME
    descriptor = _open_lock(path, os.O_RDWR | os.O_CREAT)
    try:
        _lock(descriptor)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Occupied(_occupied(folder)) from error
    except OSError as error:
        os.close(descriptor)
        raise UserError(f"{path}: cannot be locked ({error.strerror}), expected a local file system") from error
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor


def refuse_exchanged(folder: Path, lock: int) -> None:
    """Refuses to write into a run's folder that has taken the place of the one whose lock this process holds.

    Raises:
        UserError: It is.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if os.path.samestat((folder / LOCK_NAME).lstat(), os.fstat(lock)):
            return
    raise UserError(
        f"{folder}: another folder is in its place ({LOCK_NAME} is not this run's), expected the one it began in"
    )


def is_held(folder: Path) -> bool:
    """Whether a process is the writer of a run's folder, so that the run is live; False where that cannot be told."""
    try:
        descriptor = _open_lock(folder / LOCK_NAME, os.O_RDONLY)
    except (OSError, UserError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def refuse_held(folder: Path) -> None:
    """Refuses a run's folder that another process writes, without becoming its writer.

    Raises:
        Occupied: It does.
    """
    if is_held(folder):
        raise Occupied(_occupied(folder))


def _occupied(folder: Path) -> str:
    with os.fdopen(_open_lock(folder / LOCK_NAME, os.O_RDONLY), encoding="utf-8", errors="replace") as file:
        holder = file.read(200).strip()
    who = f" ({holder})" if holder else ""
    return f"{folder}: another process{who} is writing this run, expected one at a time"


def state_of_run(*, finished: bool, live: bool, verb: str) -> str:
    """Says whether a run is finished, live or interrupted; `verb` is what resumes it."""
    return "finished" if finished else "live" if live else f"interrupted; run {verb} again to resume"


def _open_lock(path: Path, flags: int) -> int:
    """Opens a run's lock itself: what stands behind a link is somebody's file, and is not written."""
    with user_errors(path):
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise UserError(f"{path}: is no plain file, or has another name elsewhere (a hard link), expected a run's lock")
    return descriptor


def _lock(descriptor: int) -> None:
    """Takes the lock, which those who ask `is_held` have for a moment."""
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_PAUSE_S)
    return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def refuse_foreign(folder: Path, makes: Sequence[str], *, overwrite: bool) -> None:
    """Refuses a folder that no run made but that holds something the run would replace, and links in any run's folder.

    Raises:
        UserError: Without a journal, any file at all when `overwrite`, else a file or folder with a name in `makes`; or
            as `refuse_links`.
    """
    refuse_links(folder, makes)
    if (folder / JOURNAL_NAME).exists():
        return
    names = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK_NAME and entry.name[0] != ".")
    in_the_way = names if overwrite else [name for name in names if name in makes]
    if in_the_way:
        shown = ", ".join(in_the_way[:3]) + (", …" if len(in_the_way) > 3 else "")
        raise UserError(f"{folder}: holds {shown} but no run's journal, expected an empty folder or that of a run")


def refuse_read(folder: Path, makes: Sequence[str], reads: Mapping[str, str]) -> None:
    """Refuses to remove what an earlier run left in a folder where a run reads some of it.

    Args:
        folder: The run's.
        makes: Names there that would be removed.
        reads: Paths, or names of something elsewhere, by key.

    Raises:
        UserError: It does; the line names the key.
    """
    for key, path in reads.items():
        place = from_home(path).resolve()
        if place.exists() and any(place.is_relative_to(folder.resolve() / name) for name in makes):
            raise UserError(f"{key}: {path} is in {folder}, which overwrite removes, expected it elsewhere")


def refuse_links(folder: Path, makes: Sequence[str]) -> None:
    """Refuses a run's folder in which something that the run reads, writes or removes is a link.

    What trackers keep is theirs, links included; nothing of it is read.

    Raises:
        UserError: It is, or the journal is a file that has another name; the line names it. Or there is more in the
            folder than any run makes.
    """
    seen = 0
    for name in (*makes, *_JOURNAL):
        entry = folder / name
        if entry.is_symlink():
            raise UserError(f"{entry}: is a link, expected what a run has written there")
        for one in _inside(entry) if name not in _TRACKED else ():
            if one.is_symlink():
                raise UserError(f"{one.path}: is a link, expected what a run has written there")
            if (seen := seen + 1) > MOST_ENTRIES:
                raise UserError(f"{folder}: holds more than {MOST_ENTRIES:,} files and folders, expected a run's own")
        if name == JOURNAL_NAME and entry.is_file() and entry.stat().st_nlink > 1:
            raise UserError(f"{entry}: has another name elsewhere (a hard link), expected a copy of its own")


def _inside(entry: Path) -> Iterator["os.DirEntry[str]"]:
    """Yields all that lies in a folder, one by one however much it is; nothing of what is no folder."""
    waiting = [os.fspath(entry)] if entry.is_dir() else []
    while waiting:
        with contextlib.suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:  # it may be pruned now
            for one in entries:
                yield one
                if one.is_dir(follow_symlinks=False):
                    waiting.append(one.path)


def folder_in(run_dir: Path, name: str) -> Path:
    """Returns a folder at the top of a run's, which is made where it is missing.

    Raises:
        UserError: A link is in its place, or it cannot be made.
    """
    path = run_dir / name
    with user_errors(path):
        path.mkdir(exist_ok=True)
    if path.is_symlink():
        raise UserError(f"{path}: is a link, expected a folder of the run")
    return path


def clear_run(folder: Path, makes: Sequence[str]) -> None:
    """Removes an old run from its folder and leaves everything else there alone.

    The journal moves last, so a crash on the way leaves a folder that still counts as a run's.
    """
    with user_errors(folder), temporary_folder(folder / "overwritten") as trash:
        for name in (*makes, *_JOURNAL):
            if os.path.lexists(folder / name):
                (folder / name).rename(trash / name)
