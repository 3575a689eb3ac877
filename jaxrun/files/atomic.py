"""Files that are either whole or absent, whatever moment the power goes.

The order is always: write under a temporary name in the same folder, fsync, rename, fsync the folder.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxrun.files.temporary import temporary_file
from jaxrun.process.errors import UserError
from jaxrun.terminal.sizes import size_text

_REASONS = {
    errno.ENOSPC: "no space left on the device, expected room to write",
    errno.EDQUOT: "disk quota used up, expected room to write",
    errno.EACCES: "permission denied, expected a folder you may write to",
    errno.EPERM: "permission denied, expected a folder you may write to",
    errno.EROFS: "read-only file system, expected one that can be written",
    errno.ENOTDIR: "part of the path is a file, expected folders",
    errno.EEXIST: "is a file, expected a folder",
    errno.EISDIR: "is a folder, expected a file",
    errno.ENXIO: "is a pipe or a socket, expected a plain file",
    errno.ENAMETOOLONG: "name too long, expected a shorter one",
    errno.ELOOP: "is a link that is not followed, or links that lead in a circle, expected a file or folder itself",
    errno.EIO: "input/output error, expected a healthy disk",
    errno.EFBIG: "file too large for this file system or limit, expected room to write",
}


def user_line(error: OSError) -> str | None:
    """Returns what an error says of the path that it names, in one line; None where no user can cause it."""
    missing = "no such file or folder, and none can be made there" if error.errno == errno.ENOENT else None
    reason = _REASONS.get(error.errno or 0, missing)
    return None if reason is None or error.filename is None else f"{error.filename}: {reason}"


@contextlib.contextmanager
def user_errors(path: str | Path) -> Iterator[None]:
    """Turns the `OSError`s of the block that a user can cause (full disk, no permission) into one line about `path`.

    Raises:
        UserError: In place of such an `OSError`; any other passes unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        raise UserError(f"{path}: {_REASONS[error.errno]}") from error


def write_atomic(path: str | Path, content: bytes | str, *, mode: int | None = None) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new one and nothing between.

    Args:
        path: The file; its folder must exist.
        content: Bytes, or text to be written as UTF-8.
        mode: Who may read and write it; None is what the process's mask leaves. It never has more on the way.

    Raises:
        UserError: Full disk, no permission, read-only file system; the old file stays as it was.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    with user_errors(path):
        with temporary_file(path, 0o666 if mode is None else 0o600) as (temporary, descriptor):
            if mode is not None:
                os.fchmod(descriptor, mode)
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(descriptor)
            temporary.replace(path)
        fsync_folder(path.parent)


def open_to_append(path: str | Path) -> int:
    """Opens a file to append to, made where it is missing, and returns its descriptor; a link is not followed.

    Raises:
        UserError: It is a link, has another name, is no plain file, or cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with user_errors(path):
        descriptor = os.open(path, flags, 0o666)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise UserError(f"{path}: is no plain file of its own, expected one that can be appended to")
    return descriptor


def digest_of(path: str | Path) -> str:
    """Returns the SHA-256 of a file, or of a folder: its sorted relative names and their contents.

    Raises:
        FileNotFoundError: Nothing is there.
    """
    digests = digests_inside(path)
    if list(digests) == [""]:
        return digests[""]
    lines = (f"{len(name.encode())}:{name}={digest}\n" for name, digest in digests.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digests_inside(path: str | Path) -> dict[str, str]:
    """Returns the SHA-256 of every file in a folder by sorted relative name; a file alone has the name ``''``.

    Raises:
        FileNotFoundError: Nothing is there.
        UserError: A link is in the folder.
    """
    path = Path(path)
    if not path.is_dir():
        return {"": _sha256(path)}
    entries = list(path.rglob("*"))
    for entry in entries:
        if entry.is_symlink():
            raise UserError(f"{entry}: is a link, expected the file itself")
    names = sorted(entry.relative_to(path).as_posix() for entry in entries)
    return {name: "folder" if (path / name).is_dir() else _sha256(path / name) for name in names}


def check_unchanged(path: Path, digests: Mapping[str, str]) -> None:
    """Makes sure that a file or folder of a checkpoint is as `digests_inside` found it.

    Raises:
        UserError: A file is missing, new or other than it was; the line names it.
    """
    try:
        found = digests_inside(path)
    except OSError as error:
        raise UserError(f"{path}: named by the last checkpoint but {error.strerror}, expected it there") from error
    for relative in [*digests, *found]:
        if digests.get(relative) != found.get(relative):
            file = path / relative if relative else path
            state = "missing" if relative not in found else "not as written" if relative in digests else "new"
            raise UserError(
                f"{file}: {state}, expected the last checkpoint unchanged (restore it, or use overwrite=true)"
            )


def inside(root: str | Path, relative: str | Path) -> Path:
    """Returns ``root / relative`` with symbolic links resolved.

    Raises:
        UserError: The result would lie outside `root`: an absolute path, ``..``, or a link that leads away.
    """
    base = Path(root).resolve()
    target = (base / relative).resolve()
    if not target.is_relative_to(base):
        raise UserError(f"{relative}: leads outside {root}, expected a path within it")
    return target


def check_writable(folder: str | Path) -> None:
    """Makes `folder` if need be and proves with a real file that it can be written.

    Raises:
        UserError: It cannot.
    """
    folder = Path(folder)
    with user_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # parents are made, so this is a place like /proc
            raise UserError(f"{folder}: no folder can be made there, expected a place you may write to") from error
        with temporary_file(folder / "probe", 0o600) as (_, descriptor):
            os.write(descriptor, b"probe")


def refuse_unwritable(folder: str | Path, least_bytes: int = 0) -> None:
    """Says what `check_writable` would, and that the disk is too small, and writes nothing.

    Args:
        folder: Need not be there.
        least_bytes: Room that must be free.

    Raises:
        UserError: It cannot be made or written, or has not so much room.
    """
    folder = Path(folder)
    with user_errors(folder):
        there = next(one for one in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(one))
        if not there.is_dir():
            raise UserError(f"{there}: is a file, expected a folder")
        if (
            not os.access(there, os.W_OK | os.X_OK, effective_ids=True)
            or there.is_relative_to("/proc")
            or there.is_relative_to("/sys")
        ):
            raise UserError(f"{folder}: cannot be written in {there}, expected a place you may write to")
        free = shutil.disk_usage(there).free
    if free < least_bytes:
        raise UserError(
            f"{folder}: {size_text(free)} free, expected at least {size_text(least_bytes)} for a checkpoint and what "
            "the run hands back"
        )


def fsync_folder(folder: str | Path) -> None:
    """Makes the names in `folder` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Makes every file and every name under `folder` last through a power cut."""
    for parent, _, names in os.walk(folder):
        for name in names:
            fsync_folder(Path(parent) / name)
        fsync_folder(parent)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
