"""Deliveries of shared runs, one after the other in a thread beside the orchestrator."""

import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

from altojax.cluster.engines.faults import AttemptKey, reason_of


class Deliveries:
    """A delivery and its outcome."""

    def __init__(self, thread: Executor | None = None) -> None:
        """Starts with nothing to deliver; `thread` is where deliveries run, one at a time."""
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="delivery")
        self._begun: dict[AttemptKey, Future[None]] = {}

    def begin(self, key: AttemptKey, deliver: Callable[[], None]) -> None:
        """Begins to deliver what an attempt has made."""
        self._begun[key] = self._thread.submit(deliver)

    def over(self) -> list[tuple[AttemptKey, str]]:
        """Returns the attempts whose delivery has come to its end, each with why it failed, or nothing."""
        found = []
        for key, delivery in list(self._begun.items()):
            if delivery.done():
                del self._begun[key]
                error = delivery.exception()
                found.append((key, "" if error is None else reason_of(error)))
        return found

    def remove(self, folder: Path) -> None:
        """Removes the folder of a shared run, after all deliveries begun before."""
        self._thread.submit(shutil.rmtree, folder, ignore_errors=True)

    def close(self) -> None:
        """Waits for the delivery in progress; those not begun are left to whoever serves next."""
        for delivery in self._begun.values():
            delivery.cancel()
        self._thread.shutdown(wait=True)
