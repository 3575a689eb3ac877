"""Workers as processes of this host, each with GPUs of its own.

They outlive the orchestrator. ``attempt-N.pid.json`` says which process an attempt is; it is written before the
process begins, so there is none that a later orchestrator would not find.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from altojax.cluster.engines.attempts import End, judge, last_line, log_of, raise_fence, read_end, read_mark
from altojax.cluster.engines.engine import Blame, Order, Report
from altojax.cluster.engines.faults import AttemptKey, Faults
from altojax.cluster.engines.process import Gated, Identity, from_outside
from altojax.cluster.engines.visible_gpus import cpu_environment, gpu_environment, host_gpus, worker_environment
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError
from jaxrun.terminal.sizes import size_text
from jaxrun.untrusted.accounts import Account

WORKER = (sys.executable, "-P", "-m", "altojax.cluster.engines.worker")
"""The worker's command; a task's folder and the attempt's number follow it."""
GRACE_S = 60.0
"""Seconds that an attempt has to save and stop before it is ended by force."""
LOG_BYTES = 64 * 2**20
"""Bytes that an attempt may print; its log is on the queue's disk, which all need."""
_KEPT_BYTES = 2**20
"""Bytes kept of a longer log."""


@dataclass
class _RunningProcess:
    """An attempt that was started and not yet reported.

    Attributes:
        order: The attempt.
        identity: Its process.
        told_s: When it was asked to stop, by this process's monotonic clock.
        ended_s: When it was first seen to have said how it ended.
        forced: Whether it was killed because it did not stop in time.
        printed: Whether it was killed because it printed too much.
    """

    order: Order
    identity: Identity
    told_s: float | None = None
    ended_s: float | None = None
    forced: bool = False
    printed: bool = False


class LocalEngine:
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
        self._names = host_gpus(os.environ)
        if self._names and gpus is not None and gpus > len(self._names):
            raise UserError(f"engine.gpus: given {gpus}, but this host has {len(self._names)}, expected no more")
        self._count = gpus or len(self._names) or 1
        self._command, self._cache, self._grace_s = tuple(command), cache, grace_s
        self._node = socket.gethostname()
        self._running: dict[AttemptKey, _RunningProcess] = {}
        self._faults = Faults()
        self._reports: list[Report] = []

    def nodes(self) -> Mapping[str, int]:
        """This host, by its name."""
        return {self._node: self._count}

    def start(self, order: Order) -> None:
        """Starts an attempt, unless it was started before."""
        key = order.job, order.attempt
        if key in self._running:
            return
        if _process_of(order) is not None or read_end(order.folder, order.attempt) is not None:
            self.adopt([order])
            return
        try:
            if not raise_fence(order.folder, order.attempt):
                raise UserError("a newer attempt was started")
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
        except (OSError, UserError) as error:
            self._reports.append(Report(*key, "failed", f"cannot be started: {error}", "node"))
            return
        gated.go()
        self._running[key] = _RunningProcess(order, gated.identity)

    def stop(self, job: str, attempt: int) -> None:
        """Tells an attempt to save and stop; `poll` ends it by force when its time is up."""
        one = self._running.get((job, attempt))
        if one is not None and one.told_s is None:
            one.told_s = time.monotonic()
            one.identity.tell(signal.SIGTERM)

    def poll(self) -> list[Report]:
        """Returns the attempts that ended since the last call: their processes are gone, so their GPUs are free."""
        for key, one in list(self._running.items()):
            with self._faults.of(key):
                self._look(key, one)
        for key, reason in self._faults.lasting().items():
            with contextlib.suppress(OSError):
                self._running[key].identity.kill()
            self._over(key, Report(*key, "failed", f"cannot be looked at: {reason}", "node"))
        reports, self._reports = self._reports, []
        return reports

    def adopt(self, orders: Sequence[Order]) -> None:
        """Watches attempts that an earlier engine of this host started, and starts those that it had not come to."""
        for order in orders:
            identity = _process_of(order)
            if identity is not None:
                self._running.setdefault((order.job, order.attempt), _RunningProcess(order, identity))
            elif read_end(order.folder, order.attempt) is not None:
                self._reports.append(judge(order, told=False, gone=_gone(order, None)))
            else:
                self.start(order)

    def close(self) -> None:
        """Disconnects from the workers, which keep running."""
        self._running.clear()

    def _look(self, key: AttemptKey, one: _RunningProcess) -> None:
        over, code = one.identity.end()
        if over:
            gone = _gone(one.order, code)
            if one.printed:
                gone = _PRINTED
                _shorten(log_of(one.order.folder, one.order.attempt))
            self._over(key, judge(one.order, told=one.told_s is not None, gone=gone, forced=one.forced))
        else:
            self._press(one)

    def _over(self, key: AttemptKey, report: Report) -> None:
        self._faults.forget(key)
        self._reports.append(report)
        del self._running[key]

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


def _process_of(order: Order) -> Identity | None:
    """Returns the process of an attempt, whether it still runs or not; None where none was ever let go."""
    return read_mark(_pid_file(order), Identity)


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
