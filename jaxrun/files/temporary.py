"""Temporary files and folders beside what they will become; those without a lock were left by a killed process.

What is to become ``NAME`` is written as ``.tmp-NAME.partial``, locked by whoever writes it; the lock ends with the
process. So one that is not locked is left over, and whoever writes there next removes it. Where a file system has no
such locks nothing is known to be left over, and nothing is removed.
"""

import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_PREFIX, _SUFFIX = ".tmp-", ".partial"

_NAME_BYTES = 200
_TRIES = 10


@contextlib.contextmanager
def temporary_file(path: Path, mode: int) -> Iterator[tuple[Path, int]]:
    """Yields a new file beside `path` and a descriptor to write it through; it goes if it is not renamed in the block.

    Args:
        path: What it is to become.
        mode: Who may read and write it, less what the process's mask takes.
    """

    def make(name: Path) -> int:
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)

    with _claimed(path, make) as claimed:
        yield claimed


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yields a new, empty folder beside `path`; it goes if it is not renamed in the block."""

    def make(name: Path) -> int:
        name.mkdir()
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    with _claimed(path, make) as (temporary, _):
        yield temporary


@contextlib.contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """Yields a new, empty folder of this user's among the temporary files of the host; it goes after the block."""
    with temporary_folder(Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}") as folder:
        folder.chmod(0o700)
        yield folder


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is a temporary one."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def remove_left_over(path: Path) -> bool:
    """Removes a file or folder unless a process holds it; returns whether it is gone."""
    if path.is_symlink():  # nobody writes through one, it was exchanged for what took its place
        path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError), held(path) as descriptor:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                remove(path)
    return not os.path.lexists(path)


@contextlib.contextmanager
def held(path: Path) -> Iterator[int | None]:
    """Holds what is at `path` against other processes; yields a descriptor of it, or None where that cannot be had.

    Raises:
        FileNotFoundError: Nothing is there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError:  # a link, or somebody else's
        yield None
        return
    try:
        yield descriptor if _lock(descriptor) and _is_at(path, descriptor) else None
    finally:
        os.close(descriptor)


def remove(path: Path, *, lenient: bool = False) -> None:
    """Removes a file, a link, or a folder with all that is in it, or with `lenient` as much of it as can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=lenient)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _claimed(path: Path, make: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    temporary, descriptor = _claim(path, make)
    try:
        yield temporary, descriptor
    finally:
        # Renamed, its name is free or has what was exchanged for it, which this process does not hold.
        if _is_at(temporary, descriptor):
            with contextlib.suppress(OSError):
                remove(temporary)
        else:
            remove_left_over(temporary)
        os.close(descriptor)


def _claim(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Makes the first temporary of `path` that no living process has, and holds it."""
    for number in itertools.count():
        temporary = _name(path, number)
        for left in reversed(range(_TRIES)):
            try:
                descriptor = make(temporary)
            except FileExistsError:
                if remove_left_over(temporary):
                    continue
                break
            except FileNotFoundError:
                if left and temporary.parent.is_dir():  # taken for left over before it was held
                    continue
                raise  # where nothing can be made, as in /proc, this is what the system says
            if _lock(descriptor) is not False and _is_at(temporary, descriptor):
                return temporary, descriptor
            os.close(descriptor)
    raise AssertionError("numbers do not end")


def _name(path: Path, number: int) -> Path:
    name = path.name.encode()[:_NAME_BYTES].decode(errors="ignore")
    return path.with_name(f"{_PREFIX}{name}{f'.{number}' if number else ''}{_SUFFIX}")


def _lock(descriptor: int) -> bool | None:
    """Takes the lock of a file or folder; False where another has it, None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
