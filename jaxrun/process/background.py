"""Work beside the main thread that nobody waits for when it is no longer wanted, not even the process as it ends.

Some work cannot be stopped once it has begun, such as a compilation in native code. Threads of `concurrent.futures` are
joined when the interpreter ends, so their work would be waited for.
"""

import atexit
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import cast

_at_work: set[threading.Thread] = set()


class Background:
    """A few threads that take work in its order.

    Attributes:
        closed: Whether no more work is taken.
    """

    def __init__(self, threads: int, name: str):
        """Starts nothing yet.

        Args:
            threads: The most that work at a time.
            name: Of the threads.
        """
        self._most, self._name = threads, name
        self._waiting: queue.SimpleQueue[tuple[Future[object], Callable[[], object]]] = queue.SimpleQueue()
        self._lock, self._threads = threading.Lock(), 0
        self.closed = False

    def submit[T](self, work: Callable[[], T], *, at_once: bool = False) -> Future[T]:
        """Begins work, now or when its turn comes.

        Args:
            work: What to do.
            at_once: In a thread of its own, before all that waits.

        Raises:
            RuntimeError: It is closed.
        """
        if self.closed:
            raise RuntimeError(f"{self._name}: closed, so no more work is taken")
        future: Future[T] = Future()
        if at_once:
            _start(self._name, lambda: _carry_out(future, work))
            return future
        self._waiting.put((cast("Future[object]", future), work))
        with self._lock:
            if self._threads < self._most:
                self._threads += 1
                _start(self._name, self._take)
        return future

    def cancel(self) -> None:
        """Cancels what has not begun; what has runs on, and whoever holds its future may still get its result."""
        while True:
            try:
                future, _ = self._waiting.get_nowait()
            except queue.Empty:
                return
            future.cancel()

    def close(self) -> None:
        """Takes no more work and cancels what has not begun; waits for nothing."""
        self.closed = True
        self.cancel()

    def _take(self) -> None:
        while True:
            with self._lock:
                try:
                    future, work = self._waiting.get_nowait()
                except queue.Empty:
                    self._threads -= 1
                    return
            _carry_out(future, work)


def busy() -> bool:
    """Whether any work is in progress."""
    return any(thread.is_alive() for thread in tuple(_at_work))


def leave(code: int) -> int:
    """Returns a program's exit code, or ends it with that at once where work is in progress that nobody wants any more.

    Such work must not run on while the interpreter takes itself apart, so nothing of the process is cleaned up then;
    what it had to write is written.
    """
    if busy():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    return code


@atexit.register
def _wait() -> None:
    """A program that ends in any other way waits."""
    for thread in tuple(_at_work):
        thread.join()


def _start(name: str, run: Callable[[], None]) -> None:
    def body() -> None:
        try:
            run()
        finally:
            _at_work.discard(thread)

    thread = threading.Thread(target=body, name=name, daemon=True)
    _at_work.add(thread)
    thread.start()


def _carry_out[T](future: "Future[T]", work: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:  # it belongs to whoever asks for the result
        future.set_exception(error)
    else:
        future.set_result(result)
