"""Paths opened beneath a folder by descriptor, so that neither a link nor ``..`` leads out of it.

The kernel resolves them in one step where it has openat2(2), Linux 5.6 and later; links that stay beneath the folder
are followed. Elsewhere they are opened component by component, and any link is refused.
"""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from jaxrun.process.errors import UserError

_SYS_OPENAT2 = 437
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_TRIES = 10
_MISSING_CALL = (errno.ENOSYS, errno.EPERM, errno.EINVAL)
"""Errors of a kernel, or a sandbox, without openat2."""

_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    """``struct open_how``."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@contextlib.contextmanager
def opened_beneath(root: str | Path, path: str, flags: int = os.O_PATH, *, links: bool = True) -> Iterator[int]:
    """Opens a path beneath a folder while the block runs.

    Args:
        root: The folder; links on the way to it are followed.
        path: Relative to it.
        flags: Of open(2).
        links: Whether links that stay beneath the folder are followed, where the kernel can check that; else none is.

    Yields:
        The descriptor.

    Raises:
        UserError: The path leaves the folder, a link is in it that is not followed, or it may not be entered.
        FileNotFoundError: Nothing is there.
    """
    with _user_errors(root, path):
        above = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            descriptor = open_at(above, path, flags, links=links)
        finally:
            os.close(above)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_at(above: int, path: str, flags: int, *, links: bool) -> int:
    """Opens a path beneath the folder of a descriptor; see `opened_beneath`.

    Raises:
        OSError: EXDEV where it leaves the folder, ELOOP or ENOTDIR for a link that is not followed, or as open(2).
    """
    resolve = _BENEATH | _NO_MAGICLINKS | (0 if links else _NO_SYMLINKS)
    how = _How(flags | os.O_CLOEXEC, 0, resolve)
    for _ in range(_TRIES):
        found = _libc.syscall(_SYS_OPENAT2, above, os.fsencode(path or "."), ctypes.byref(how), ctypes.sizeof(how))
        if found >= 0:
            return int(found)
        if (number := ctypes.get_errno()) != errno.EAGAIN:  # a rename went on beside
            break
    if number in _MISSING_CALL:
        return _open_stepwise(above, path, flags)
    raise OSError(number, os.strerror(number), path)


def check_no_links(root: str | Path, path: str) -> None:
    """Refuses a path beneath a folder that goes through a link; what of it is not there yet may be made.

    Raises:
        UserError: It does, or leaves the folder, or a part of it is no folder or may not be entered.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise UserError(f"{Path(root, path)}: leads outside {root}, expected a path beneath it")
    for count in range(len(parts) + 1):
        try:
            with opened_beneath(root, "/".join(parts[:count]), os.O_PATH | os.O_DIRECTORY, links=False):
                pass
        except FileNotFoundError:
            return


def check_tree(root: str | Path, path: str, most: int) -> int:
    """Refuses a file beneath a folder, or a folder there and all in it, where anything of it leads out or is special.

    Args:
        root: The folder.
        path: Relative to it.
        most: Entries that are looked at; a folder with more is refused.

    Returns:
        How many there are.

    Raises:
        UserError: As `opened_beneath`, or an entry is a pipe, a socket or a device, or there are too many.
        FileNotFoundError: Nothing is there.
    """
    todo, seen = [path], 0
    while todo:
        one = todo.pop()
        seen += 1
        if seen > most:
            raise UserError(f"{Path(root, path)}: holds more than {most:,} files, expected a folder of its own")
        with opened_beneath(root, one) as descriptor:
            mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            with opened_beneath(root, one, os.O_RDONLY | os.O_DIRECTORY) as folder, os.scandir(folder) as entries:
                todo += [f"{one}/{entry.name}".lstrip("/") for entry in entries]
        elif not stat.S_ISREG(mode):
            raise UserError(f"{Path(root, one)}: is no plain file, expected files and folders")
    return seen


def _open_stepwise(above: int, path: str, flags: int) -> int:
    """Opens component by component and follows no link."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    if not parts:
        return os.open(".", flags | os.O_CLOEXEC, dir_fd=above)
    folder = os.dup(above)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        found = os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    if stat.S_ISLNK(os.fstat(found).st_mode):  # O_PATH opens the link itself
        os.close(found)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return found


@contextlib.contextmanager
def _user_errors(root: str | Path, path: str) -> Iterator[None]:
    whole = Path(root, path)
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise UserError(f"{whole}: leads outside {root}, expected a path beneath it") from error
        if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and whole.is_symlink()):
            raise UserError(f"{whole}: goes through a link, expected a path without any") from error
        raise UserError(f"{whole}: {error.strerror}, expected a path beneath {root} that can be opened") from error
