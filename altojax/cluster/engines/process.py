"""Processes that outlive whoever starts them, and how they are found again.

Linux gives the number of a dead process to a new one, so a number alone is never trusted: a process is known by its
number, when it began and which boot of which kernel that was.
"""

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from jaxrun.config.config import StrictModel
from jaxrun.files.atomic import open_to_append
from jaxrun.process.interrupt import CAUGHT
from jaxrun.untrusted.accounts import Account, command_as

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_GATE = 'read -r _ && exec "$@" </dev/null'
_DEAD = "ZX"
_OURS = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS)
"""Signals by which a process ends through its own doing."""


class Identity(StrictModel):
    """Identity of a process among all others, past or future.

    Attributes:
        pid: Its number, which is also that of its session and its process group.
        began: When it began, in clock ticks after the boot.
        boot: Which boot of which machine.
    """

    pid: int
    began: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Returns the identity of a process, or None where there is none; a child that nobody has buried counts."""
        stat = _stat(pid)
        return None if stat is None else cls(pid=pid, began=stat.began, boot=_BOOT.read_text().strip())

    @property
    def lives(self) -> bool:
        """Whether this very process still runs."""
        stat = _stat(self.pid)
        return stat is not None and stat.state not in _DEAD and Identity.of(self.pid) == self

    def end(self) -> tuple[bool, int | None]:
        """Returns whether the process is gone, and how it ended if it was started by this one.

        What it started and left behind in its session is killed with its end. The code is as of
        `os.waitstatus_to_exitcode`: negative for a signal.
        """
        over, code = self._end()
        if over:
            self._kill_session()
        return over, code

    def _end(self) -> tuple[bool, int | None]:
        if Identity.of(self.pid) != self:
            return True, None
        try:
            # Threads of a process may outlive the one that /proc calls dead; its parent is notified when all are gone.
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return not self.lives, None
        return (True, os.waitstatus_to_exitcode(status)) if pid else (False, None)

    def _kill_session(self) -> None:
        """Ends what is left of the session of a process that is gone.

        Linux gives a number to no new process while any is in a session of that number. So where another process has
        it, nothing is left.
        """
        if Identity.of(self.pid) not in (None, self) or _BOOT.read_text().strip() != self.boot:
            return
        for pid in [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]:
            stat = _stat(pid)
            if stat is not None and stat.session == self.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def tell(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if it still runs."""
        if self.lives:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the process and all that it started, at once."""
        if self.lives:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


class Gated:
    """A process that has been made and waits to be let go; if its maker dies before, it ends without having begun.

    So what is to be known of a process can be written down before it does anything.

    Attributes:
        identity: The process.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, account: Account | None = None
    ):
        """Makes the process, in a session of its own, so that no terminal's Ctrl-C reaches it.

        Args:
            command: The program and its arguments.
            environment: All of it.
            log: Where its output is appended.
            account: The user as whom it runs, who gets the log; None is who runs this process.

        Raises:
            OSError: There is no room for a process.
            UserError: The log is no plain file, or cannot be written.
        """
        output = open_to_append(log)
        waits, self._gate = os.pipe()
        try:
            if account is not None:
                os.fchown(output, account.uid, account.gid)
                command = command_as(account, command)
            pid = os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", _GATE, "sh", *command],
                dict(environment),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, waits, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, output, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, *CAUGHT],
            )
        except BaseException:
            os.close(self._gate)
            raise
        finally:
            os.close(waits)
            os.close(output)
        identity = Identity.of(pid)
        if identity is None:
            os.close(self._gate)
            raise ChildProcessError(f"process {pid} ended before it began")
        self.identity = identity

    def go(self) -> None:
        """Lets it begin."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._gate, b"\n")
        os.close(self._gate)

    def drop(self) -> None:
        """Ends it without letting it begin."""
        os.close(self._gate)
        os.waitpid(self.identity.pid, 0)


def from_outside(code: int) -> bool:
    """Whether an exit code says that somebody else ended the process: the kernel, an operator, a shutdown."""
    return code < 0 and -code not in _OURS


class _Stat(NamedTuple):
    """Fields 3, 6 and 22 of proc(5): the state of a process, its session, when it began in ticks after the boot."""

    state: str
    session: int
    began: int


def _stat(pid: int) -> _Stat | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _Stat(fields[0], int(fields[3]), int(fields[19]))
