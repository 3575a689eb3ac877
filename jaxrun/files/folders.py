"""Folders that are replaced in one step, copied without following links, and put right after a process was killed.

Linux swaps two folders at once (``renameat2``). Where that cannot be had, the old folder is moved aside as
``.old-NAME.replaced`` and locked until the new one is in its place; if the process is killed between, the next call
moves it back.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from jaxrun.files.atomic import fsync_folder, fsync_tree, user_errors
from jaxrun.files.temporary import held, is_temporary, remove, remove_left_over, temporary_folder
from jaxrun.process.errors import UserError

_PREFIX, _SUFFIX = ".old-", ".replaced"
_AT_CWD = -100
_EXCHANGE = 2
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


@contextlib.contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty temporary sibling folder; at success it is fsynced and takes the place of `path`.

    Files in it may be read by whom the process's mask lets, however the libraries that wrote them made them. An
    exception in the block removes the temporary folder and leaves `path` as it was.

    Raises:
        UserError: Full disk, no permission, read-only file system.
    """
    path = Path(path)
    with user_errors(path):
        put_back(path)
        with temporary_folder(path) as temporary:
            yield temporary
            _open_modes(temporary)
            fsync_tree(temporary)
            _put_in_place(temporary, path)
            fsync_folder(path.parent)


def put_back(path: Path) -> None:
    """Moves a folder back that a killed process had moved aside, or removes it where the new one had arrived."""
    retired = _retired(path)
    with contextlib.suppress(FileNotFoundError), held(retired) as descriptor:
        if descriptor is None:
            return
        if os.path.lexists(path):
            remove(retired)
        else:
            retired.rename(path)


def remove_leftovers(folder: str | Path) -> list[str]:
    """Cleans up what processes that were killed left in `folder` while they wrote files and folders there.

    What a living process writes stays.

    Returns:
        The names removed; a folder that was moved aside and never replaced is put back instead.
    """
    gone = []
    with user_errors(folder):
        for entry in sorted(Path(folder).iterdir()):
            if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX):
                home = entry.with_name(entry.name.removeprefix(_PREFIX).removesuffix(_SUFFIX))
                replaced = os.path.lexists(home)
                put_back(home)
                gone += [entry.name] if replaced and not os.path.lexists(entry) else []
            elif is_temporary(entry.name) and remove_left_over(entry):
                gone.append(entry.name)
    return gone


def copy_files(source: Path, to: Path) -> None:
    """Copies the files of a folder and of those in it, each by its own name: no link is followed.

    Args:
        source: Where from; it may be a link itself.
        to: A folder that is there.

    Raises:
        UserError: A link, a pipe or a device is among them, or a file cannot be read.
    """
    for place, folders, names, descriptor in os.fwalk(source, onerror=_raise):
        inside = Path(place).relative_to(source)
        for name in (*folders, *names):
            with user_errors(Path(place) / name):
                kind = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
                if stat.S_ISDIR(kind):
                    (to / inside / name).mkdir()
                elif stat.S_ISREG(kind):
                    _copy_file(name, descriptor, to / inside / name)
                else:
                    found = "a link" if stat.S_ISLNK(kind) else "no plain file"
                    raise UserError(f"{Path(place) / name}: is {found}, expected files and folders alone")


def _copy_file(name: str, folder: int, to: Path) -> None:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as read, to.open("xb") as written:
        shutil.copyfileobj(read, written, 2**20)


def _raise(error: OSError) -> None:
    raise error


def _put_in_place(temporary: Path, path: Path) -> None:
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
        if not exchange(temporary, path):
            _swap_by_two_moves(temporary, path)


def exchange(one: Path, other: Path) -> bool:
    """Swaps two entries of a file system in one step; False where the system cannot.

    Raises:
        OSError: It could, and failed.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _swap_by_two_moves(temporary: Path, path: Path) -> None:
    retired = _retired(path)
    with held(path):
        path.rename(retired)
        try:
            temporary.rename(path)
        except BaseException:
            retired.rename(path)
            raise
        fsync_folder(path.parent)
        remove(retired)


def _retired(path: Path) -> Path:
    return path.with_name(f"{_PREFIX}{path.name}{_SUFFIX}")


def _open_modes(folder: Path) -> None:
    """Gives files the rights that the mask leaves to new ones, as `folder` has them."""
    allowed = folder.stat().st_mode & 0o666
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            if not path.is_symlink() and (mode := path.stat().st_mode & 0o777) | allowed != mode:
                path.chmod(mode | allowed)
