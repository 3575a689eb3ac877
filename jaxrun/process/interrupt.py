"""Ctrl-C as a request: the first one lets the run stop at a safe point, the second one stops it now.

A run in a thread of a larger program gets no signals; whoever started it holds its `Interrupt` and calls `request`.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from types import FrameType
from typing import Protocol, runtime_checkable

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; what schedulers send before they end a job; what they send where a user has asked for an early warning."""
LOOK_S = 0.1
"""Seconds from one look whether to stop to the next, while something is waited for."""
_NOTICE = b"stopping as soon as all is saved; once more stops at once\n"


@runtime_checkable
class StopAsked(Protocol):
    """A request to stop, which a run looks at."""

    @property
    def requested(self) -> bool:
        """Whether it is."""
        ...


class Stopped(Exception):
    """A run was asked to stop while it did what can be done again."""


def stop_if(asked: StopAsked | None) -> None:
    """Looks whether a run is to stop.

    Args:
        asked: What says so; None never does.

    Raises:
        Stopped: It is.
    """
    if asked is not None and asked.requested:
        raise Stopped


def wait_for[T](future: Future[T], asked: StopAsked | None) -> T:
    """Returns what a future brings, or raises what it raises.

    Args:
        future: To wait for.
        asked: What says that nobody waits any more; None never does.

    Raises:
        Stopped: It was asked to stop before the result was there.
    """
    while not wait([future], timeout=LOOK_S).done:
        stop_if(asked)
    return future.result()


def is_compilers(error: BaseException) -> bool:
    """Whether an error is what JAX says where a compiler that it started has died.

    Ctrl-C in a terminal reaches all processes of a program, so also the ``ptxas`` that compiles for a GPU.
    """
    return type(error).__name__ == "JaxRuntimeError" and str(error).startswith("INTERNAL")


class Interrupt:
    """A request to stop: `catch_interrupt` yields one, or another thread makes it.

    Attributes:
        requested: True once one of `CAUGHT` has arrived, or `request` was called.
    """

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Asks the run to stop at the next safe point, from any thread."""
        self.requested = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        with contextlib.suppress(OSError):  # nobody may be listening any more
            os.write(2, _NOTICE)


@contextlib.contextmanager
def catch_interrupt() -> Iterator[Interrupt]:
    """Catches the signals of `CAUGHT` in the main thread for the length of the block and then restores what was there.

    Python delivers signals to the main thread only; in any other thread the block runs and catches nothing.
    The loop inside looks at ``.requested`` at each safe point (a checkpoint) and ends there.

    Raises:
        KeyboardInterrupt: At the second signal, or where the first one ended a compiler that was waited for.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt._receive) for number in CAUGHT}
    try:
        yield interrupt
    except Exception as error:
        if interrupt.requested and is_compilers(error):
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
