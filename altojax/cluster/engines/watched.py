"""What engines have in common whose attempts run elsewhere and outlive them: each is started once, then watched."""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from altojax.cluster.engines.attempts import judge, raise_fence, read_end
from altojax.cluster.engines.engine import Order, Report
from altojax.cluster.engines.faults import AttemptKey, Faults
from jaxrun.process.errors import UserError


@dataclass(kw_only=True)
class Attempt:
    """An attempt that was started and not yet reported; times are of this process's monotonic clock.

    Attributes:
        order: The attempt.
        told_s: When it was asked to stop.
        forced: Whether it was ended by force because it did not stop in time.
    """

    order: Order
    told_s: float | None = None
    forced: bool = False


class WatchedEngine[One: Attempt](ABC):
    """An engine by what it does with one attempt. To be used from one thread."""

    def __init__(self) -> None:
        self._running: dict[AttemptKey, One] = {}
        self._faults = Faults()
        self._reports: list[Report] = []

    def start(self, order: Order) -> None:
        """Starts an attempt, unless that was done before; one that cannot be started is reported."""
        if (order.job, order.attempt) not in self._running:
            self.adopt([order])

    def stop(self, job: str, attempt: int) -> None:
        """Tells an attempt to save and stop; `poll` ends it by force when its time is up."""
        one = self._running.get((job, attempt))
        if one is not None and one.told_s is None:
            one.told_s = time.monotonic()
            self._tell(one)

    def poll(self) -> list[Report]:
        """Returns the attempts that ended since the last call: nothing of them runs now, so their GPUs are free."""
        self._look_at_all()
        for key, reason in self._faults.lasting().items():
            with contextlib.suppress(Exception):  # it could not be looked at, and cannot be ended either
                self._kill(self._running[key])
            self._over(self._running[key], Report(*key, "failed", f"cannot be looked at: {reason}", "node"))
        reports, self._reports = self._reports, []
        return reports

    def adopt(self, orders: Sequence[Order]) -> None:
        """Watches attempts that an earlier engine started, and starts those that it had not come to."""
        for order in orders:
            if (one := self._find(order)) is not None:
                self._running.setdefault((order.job, order.attempt), one)
            elif (end := read_end(order.folder, order.attempt)) is not None:
                self._reports.append(judge(order, told=False, gone=end))
            else:
                self._begin(order)

    def close(self) -> None:
        """Lets go of the attempts, which keep running."""
        self._running.clear()

    def _begin(self, order: Order) -> None:
        key = order.job, order.attempt
        try:
            if not raise_fence(order.folder, order.attempt):
                raise UserError("a newer attempt was started")
            self._running[key] = self._launch(order)
        except (OSError, UserError) as error:
            self._reports.append(Report(*key, "failed", f"cannot be started: {error}", "node"))

    def _look_at_all(self) -> None:
        """Looks at each attempt, and keeps what goes wrong with one from the others."""
        for key, one in list(self._running.items()):
            with self._faults.of(key):
                self._look(one)

    def _over(self, one: One, report: Report) -> None:
        self._faults.forget((report.job, report.attempt))
        self._reports.append(report)
        del self._running[report.job, report.attempt]

    @abstractmethod
    def _find(self, order: Order) -> One | None:
        """Returns an attempt that was started before, whether it still runs or not; None where it was not."""

    @abstractmethod
    def _launch(self, order: Order) -> One:
        """Starts an attempt, whose fence is raised.

        Raises:
            UserError: It cannot be started.
        """

    @abstractmethod
    def _look(self, one: One) -> None:
        """Reports an attempt that is over, and ends by force one whose time is up."""

    @abstractmethod
    def _tell(self, one: One) -> None:
        """Asks an attempt to save and stop."""

    @abstractmethod
    def _kill(self, one: One) -> None:
        """Ends an attempt at once."""
