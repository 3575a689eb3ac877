"""Workers as processes of this host, each with GPUs of its own.

They outlive the orchestrator. ``attempt-N.pid.json`` says which process an attempt is; it is written before the
process begins, so there is none that a later orchestrator would not find.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from altojax.cluster.engines.attempts import End, judge, last_line, log_of, read_end, read_mark
from altojax.cluster.engines.engine import Blame, Order
from altojax.cluster.engines.process import Gated, Identity, from_outside
from altojax.cluster.engines.visible_gpus import ROOT, cpu_environment, gpu_environment, host_gpus, worker_environment
from altojax.cluster.engines.watched import Attempt, WatchedEngine
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError
from jaxrun.terminal.sizes import size_text
from jaxrun.untrusted.accounts import Account

WORKER = (sys.executable, "-P", "-m", "altojax.cluster.engines.worker")
"""The worker's command; a task's folder and the attempt's number follow it."""
NEEDED = (Path(sys.executable), ROOT)
"""Programs and packages that it needs."""
GRACE_S = 60.0
"""Seconds that an attempt has to save and stop before it is ended by force."""
LOG_BYTES = 64 * 2**20
"""Bytes that an attempt may print; its log is on the queue's disk, which all need."""
_KEPT_BYTES = 2**20
"""Bytes kept of a longer log."""


@dataclass(kw_only=True)
class _RunningProcess(Attempt):
    """An attempt as a process.

    Attributes:
        identity: The process.
        ended_s: When it was first seen to have said how it ended.
        printed: Whether it was killed because it printed too much.
    """

    identity: Identity
    ended_s: float | None = None
    printed: bool = False


class LocalEngine(WatchedEngine[_RunningProcess]):
    """This host. To be used from one thread."""

    name = "local"
    switches_user = True

    def __init__(
        self,
        *,
        gpus: int | None = None,
        command: Sequence[str] = WORKER,
        cache: Path | None = None,
        grace_s: float = GRACE_S,
    ):
        """Counts the GPUs.

        Args:
            gpus: How many to use; None is all. On a host without any, so many simulated devices of its CPU, or one.
            command: The worker; a task's folder and the attempt's number come after it.
            cache: Folder of compiled programs that workers share.
            grace_s: Seconds from a request to stop to the end by force.

        Raises:
            UserError: There are fewer GPUs, or the driver does not answer.
        """
        super().__init__()
        self._names = host_gpus(os.environ)
        if self._names and gpus is not None and gpus > len(self._names):
            raise UserError(f"engine.gpus: given {gpus}, but this host has {len(self._names)}, expected no more")
        self._count = gpus or len(self._names) or 1
        self._command, self._cache, self._grace_s = tuple(command), cache, grace_s
        self._node = socket.gethostname()

    def nodes(self) -> Mapping[str, int]:
        """This host, by its name."""
        return {self._node: self._count}

    def _find(self, order: Order) -> _RunningProcess | None:
        identity = read_mark(_pid_file(order), Identity)
        return None if identity is None else _RunningProcess(order=order, identity=identity)

    def _launch(self, order: Order) -> _RunningProcess:
        account = None if order.uid is None else Account.of(order.uid)
        gated = Gated(
            [*self._command, str(order.folder), str(order.attempt)],
            worker_environment(self._devices(order), self._cache, account),
            log_of(order.folder, order.attempt),
            account,
        )
        try:
            write_atomic(_pid_file(order), gated.identity.model_dump_json())
        except BaseException:
            gated.drop()
            raise
        gated.go()
        return _RunningProcess(order=order, identity=gated.identity)

    def _tell(self, one: _RunningProcess) -> None:
        one.identity.tell(signal.SIGTERM)

    def _kill(self, one: _RunningProcess) -> None:
        one.identity.kill()

    def _look(self, one: _RunningProcess) -> None:
        over, code = one.identity.end()
        if over:
            gone = _gone(one.order, code)
            if one.printed:
                gone = _PRINTED
                _shorten(log_of(one.order.folder, one.order.attempt))
            self._over(one, judge(one.order, told=one.told_s is not None, gone=gone, forced=one.forced))
        else:
            self._press(one)

    def _devices(self, order: Order) -> dict[str, str]:
        indices = order.gpus.get(self._node, ())
        if not indices or len(order.gpus) > 1 or max(indices) >= self._count:
            raise UserError(f"given GPUs {json.dumps(dict(order.gpus))}, expected some of 0 to {self._count - 1} here")
        if not self._names:
            return cpu_environment(len(indices))
        return gpu_environment([self._names[index] for index in indices])

    def _press(self, one: _RunningProcess) -> None:
        """Ends by force what does not stop in time, floods its log, or has said that it ended and yet hangs."""
        now = time.monotonic()
        log = log_of(one.order.folder, one.order.attempt)
        if log.exists() and log.stat().st_size > LOG_BYTES:
            one.printed = True
            one.identity.kill()
            return
        if one.ended_s is None and read_end(one.order.folder, one.order.attempt) is not None:
            one.ended_s = now
        since = min((moment for moment in (one.told_s, one.ended_s) if moment is not None), default=now)
        if now - since > self._grace_s:
            one.forced = True
            one.identity.kill()


_PRINTED = End(
    code=1, outcome="failed", reason=f"printed more than {size_text(LOG_BYTES)}, expected a line now and then"
)


def _shorten(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.ftruncate(descriptor, _KEPT_BYTES)
    finally:
        os.close(descriptor)


def _pid_file(order: Order) -> Path:
    return order.folder / f"attempt-{order.attempt}.pid.json"


def _gone(order: Order, code: int | None) -> End:
    """Returns the end of a process that is gone without a report."""
    told = last_line(log_of(order.folder, order.attempt))
    said = f": {told}" if told else ""
    if code is None:
        return End(code=1, outcome="failed", reason=f"its process is gone{said}", blame="node")
    if code < 0:
        blame: Blame = "node" if from_outside(code) else "task"
        return End(code=code, outcome="failed", reason=f"killed by {signal.Signals(-code).name}{said}", blame=blame)
    return End(code=code, outcome="failed", reason=told or f"exit code {code}", blame="task")
