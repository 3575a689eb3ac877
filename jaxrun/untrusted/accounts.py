"""Accounts of this host: processes that run as another user, and threads that touch files as one.

Both need the rights of root. A process gives them up for good before its program begins. A thread keeps them, but the
kernel checks its files against the other user (setfsuid(2)), as it does for whoever serves files over a network.
"""

import contextlib
import ctypes
import os
import platform
import pwd
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from jaxrun.process.errors import UserError

UMASK = 0o077
"""The file mode mask of a process that runs as another user: its files are for that user alone."""

_SET_GROUPS = {"x86_64": 116, "aarch64": 159}
"""Number of setgroups(2), which concerns one thread; the C library's own call would concern all."""
_BECOME = """
import os, sys, warnings
uid, gid, mask, groups, *command = sys.argv[1:]
os.setgroups([int(one) for one in groups.split(',')]); os.setgid(int(gid)); os.setuid(int(uid))
os.umask(int(mask)); os.chdir('/')
try:
    os.execvp(command[0], command)
except OSError as error:
    expected = 'expected a program that all users who submit may read and run'
    sys.exit(f'{command[0]}: cannot be run by user {uid} ({error.strerror}), {expected}')
"""
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Account:
    """A user of this host.

    Attributes:
        uid: Number.
        gid: Number of the primary group.
        groups: Numbers of all groups.
        name: Names it.
        home: Its home folder.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str

    @classmethod
    def of(cls, uid: int) -> Self:
        """Looks up a user.

        Raises:
            UserError: There is none of that number.
        """
        try:
            found = pwd.getpwuid(uid)
        except KeyError as error:
            raise UserError(f"user {uid}: has no account on this host, expected one to run as") from error
        groups = tuple(os.getgrouplist(found.pw_name, found.pw_gid))
        return cls(uid, found.pw_gid, groups, found.pw_name, found.pw_dir)


def command_as(account: Account, command: Sequence[str]) -> list[str]:
    """Returns a command that, started by root, becomes another user for good and then runs `command` in ``/``.

    Where that user may not run it, the process says so in its last line and ends with exit code 1.
    """
    groups = ",".join(map(str, account.groups))
    return [sys.executable, "-ISc", _BECOME, str(account.uid), str(account.gid), str(UMASK), groups, *command]


def closed_to_others(path: Path) -> Path | None:
    """Returns what keeps users out of a program or of a folder of packages: it, or a folder above it; None if nothing.

    Links are followed. Rights that some users have by their group are not seen.
    """
    real = path.resolve()
    needed = {**dict.fromkeys(reversed(real.parents), 0o001), real: 0o005}
    return next((one for one, rights in needed.items() if one.stat().st_mode & rights != rights), None)


@contextlib.contextmanager
def files_as(account: Account) -> Iterator[None]:
    """Has the kernel check what this thread does with files in the block as if the user did it.

    Raises:
        UserError: This process is not root's, or the machine is of a kind whose calls are not known.
    """
    own = os.getgroups()
    _set_groups(account.groups)
    try:
        _libc.setfsgid(account.gid)
        _libc.setfsuid(account.uid)
        if _libc.setfsuid(-1) != account.uid:  # a call that changes nothing tells who it is
            raise UserError(f"user {account.name}: files cannot be touched as that user, expected the rights of root")
        yield
    finally:
        _libc.setfsuid(os.geteuid())
        _libc.setfsgid(os.getegid())
        _set_groups(own)


def _set_groups(groups: Sequence[int]) -> None:
    number = _SET_GROUPS.get(platform.machine())
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if number is None or _libc.syscall(number, len(groups), array):
        raise UserError(
            f"groups of a thread cannot be set on {platform.machine()} by user {os.geteuid()}, expected root"
        )
