"""Forks a process and ends it by SIGKILL, at a change of its files or after a while; a part of other scripts.

A change is what Python reports to audit hooks before it happens: a file opened for writing, a rename, a removal and so
on, below one folder. To be killed at change n is to have made n - 1 of them and no more.
"""

import contextlib
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_POLL_S = 0.01


class Ending(NamedTuple):
    """How a process ended.

    Attributes:
        code: Its exit code, or minus the number of the signal that ended it.
        changes: Changes of files that it came to.
        seconds: How long it ran.
    """

    code: int
    changes: int
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether it was killed."""
        return self.code == -signal.SIGKILL


def run_forked(
    body: Callable[[], int | None],
    below: Path,
    *,
    at: int | None = None,
    after_s: float | None = None,
    log: Path | None = None,
) -> Ending:
    """Runs a function in a process of its own, with all that it starts, and waits for its end.

    Args:
        body: Returns an exit code.
        below: Changes of files in this folder count.
        at: Kill it before this change, the first being 1.
        after_s: Kill it, and all processes that it started, after so many seconds.
        log: Where its output goes; None is where this process's does.
    """
    counted = mmap(-1, 8)
    sys.stdout.flush()
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        code = 1
        try:
            if log is not None:
                _write_to(log)
            sys.addaudithook(_counter(counted, str(below.resolve()), at))
            code = body() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    with contextlib.suppress(OSError):  # whoever is first makes the group
        os.setpgid(child, child)
    status = None
    while status is None:
        ended, found = os.waitpid(child, os.WNOHANG)
        if ended:
            status = found
        elif after_s is not None and time.monotonic() - begun > after_s:
            os.killpg(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        else:
            time.sleep(_POLL_S)
    return Ending(os.waitstatus_to_exitcode(status), _number(counted), time.monotonic() - begun)


def _counter(counted: mmap, below: str, at: int | None) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not _is_change(event, arguments, below):
            return
        number = _number(counted) + 1
        struct.pack_into("q", counted, 0, number)
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def _is_change(event: str, arguments: tuple[Any, ...], below: str) -> bool:
    if event in ("os.remove", "os.rmdir") and arguments[1] != -1:  # beneath a folder that is being removed
        return True
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    if not writes and event not in _CHANGES:
        return False
    path = arguments[0]
    return isinstance(path, str | bytes | os.PathLike) and str(Path(os.fsdecode(path)).absolute()).startswith(below)


def _number(counted: mmap) -> int:
    return int(struct.unpack_from("q", counted, 0)[0])


def _write_to(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
