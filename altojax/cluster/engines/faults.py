"""Isolation of faults: an error while one attempt is looked at ends that attempt and no other.

An error that passes (no descriptor left, a file system that hangs for a moment) is waited out; one that lasts is the
end of its attempt.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from altojax.cluster.engines.attempts import one_line
from jaxrun.process.errors import UserError

AttemptKey = tuple[str, int]
"""Name of a task, and which attempt of it."""
LASTS_S = 60.0
"""Seconds after which an error is not waited out any longer."""


def reason_of(error: BaseException) -> str:
    """Returns what went wrong as one line; what is no `UserError` is named by its type."""
    return one_line(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")


class Faults:
    """Errors of several attempts, kept apart. To be used from one thread."""

    def __init__(self, lasts_s: float = LASTS_S, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts without any.

        Args:
            lasts_s: Seconds after which an error is not waited out any longer.
            clock: Seconds that only grow.
        """
        self._lasts_s, self._clock = lasts_s, clock
        self._first: dict[AttemptKey, float] = {}
        self._said: dict[AttemptKey, str] = {}

    @contextlib.contextmanager
    def of(self, key: AttemptKey) -> Iterator[None]:
        """Keeps an error of the block to the attempt; a block without one forgets those before it."""
        try:
            yield
        except Exception as error:
            self._first.setdefault(key, self._clock())
            self._said[key] = reason_of(error)
        else:
            self.forget(key)

    def lasting(self) -> dict[AttemptKey, str]:
        """Returns the attempts whose errors do not pass, and what was the last one."""
        now = self._clock()
        return {key: self._said[key] for key, since in self._first.items() if now - since >= self._lasts_s}

    def forget(self, key: AttemptKey) -> None:
        """Drops what is known of an attempt."""
        self._first.pop(key, None)
        self._said.pop(key, None)
