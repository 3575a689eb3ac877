"""One task at a time in a thread of this process, on all of its devices.

For a notebook, a test, or a host whose only process may use its devices. What ends the process ends the attempt; the
next one resumes from its last checkpoint. A thread cannot be ended by force: a stop takes effect at the next step.
"""

import contextlib
import os
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from altojax.cluster.engines.attempts import End, judge, log_of, newest_attempt, raise_fence, read_end, write_end
from altojax.cluster.engines.engine import Order, Report
from altojax.cluster.engines.worker import end_of, tune
from jaxrun.files.atomic import open_to_append
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import Interrupt

NODE = "here"


@dataclass
class _RunningThread:
    """The attempt in the thread.

    Attributes:
        order: The attempt.
        thread: Where it runs.
        interrupt: What asks it to stop.
        told: Whether the engine was asked to stop it.
    """

    order: Order
    thread: threading.Thread
    interrupt: Interrupt = field(default_factory=Interrupt)
    told: bool = False


class HereEngine:
    """This process. It counts as one GPU, however many devices it has: a task gets all of them or waits."""

    name = "here"
    switches_user = False

    def __init__(self) -> None:
        self._running: _RunningThread | None = None
        self._reports: list[Report] = []

    def nodes(self) -> Mapping[str, int]:
        """This process."""
        return {NODE: 1}

    def start(self, order: Order) -> None:
        """Starts an attempt, unless it was started before; one at a time."""
        key = order.job, order.attempt
        if self._running is not None:
            if self._running.order != order:
                reason = f"cannot be started: {self._running.order.job} runs, expected one task at a time"
                self._reports.append(Report(*key, "failed", reason, "node"))
            return
        if read_end(order.folder, order.attempt) is not None:
            self.adopt([order])
            return
        try:
            if not raise_fence(order.folder, order.attempt):
                raise UserError("a newer attempt was started")
        except UserError as error:
            self._reports.append(Report(*key, "failed", f"cannot be started: {error}", "node"))
            return
        interrupt = Interrupt()
        thread = threading.Thread(target=_attempt, args=(order, interrupt), name=order.job)
        self._running = _RunningThread(order, thread, interrupt)
        thread.start()

    def stop(self, job: str, attempt: int) -> None:
        """Asks an attempt to save and stop."""
        one = self._running
        if one is not None and (one.order.job, one.order.attempt) == (job, attempt):
            one.told = True
            one.interrupt.request()

    def poll(self) -> list[Report]:
        """Returns the attempts that ended since the last call."""
        one = self._running
        with contextlib.suppress(UserError):  # a fence that cannot be read says of no newer attempt
            if one is not None and newest_attempt(one.order.folder) > one.order.attempt:
                one.interrupt.request()
        if one is not None and not one.thread.is_alive():
            self._reports.append(judge(one.order, told=one.told, gone=_REPLACED))
            self._running = None
        reports, self._reports = self._reports, []
        return reports

    def adopt(self, orders: Sequence[Order]) -> None:
        """Reports attempts of an earlier process, of which none runs any more; starts those that it had not begun."""
        for order in orders:
            if self._running is not None and self._running.order == order:
                continue
            if read_end(order.folder, order.attempt) or log_of(order.folder, order.attempt).exists():
                self._reports.append(judge(order, told=False, gone=_GONE))
            else:
                self.start(order)

    def close(self) -> None:
        """Stops the attempt, after a checkpoint."""
        if self._running is not None:
            self._running.interrupt.request()
            self._running.thread.join()


_GONE = End(code=1, outcome="failed", reason="the process that ran it is gone", blame="node")
_REPLACED = End(code=1, outcome="failed", reason="a newer attempt has taken its place", blame="node")


def _attempt(order: Order, interrupt: Interrupt) -> None:
    from jaxlm.devices.hosts import ALONE

    with os.fdopen(open_to_append(log_of(order.folder, order.attempt)), "a", 1, encoding="utf-8") as log:
        try:
            code = tune(order.folder, ALONE, interrupt, log)
            end = End(code=code, outcome="halted" if code else "ended")
        except BaseException as error:
            end = end_of(error)
            if end.code == 1:
                traceback.print_exc(file=log)
        with contextlib.suppress(UserError):  # a full disk: its silence says enough
            write_end(order.folder, order.attempt, end)
