"""Starts a program: from then on Ctrl-C ends it with one line and exit code 130.

Little is imported here, and nothing of ours, so that it is in force before anything that takes long.
"""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from types import FrameType

INTERRUPTED = 130
"""The exit code of what Ctrl-C has ended."""


def start(program: str, module: str) -> int:
    """Imports a program and runs it; returns its exit code.

    Args:
        program: Its name.
        module: Where its ``main`` is.
    """
    expect_interrupt(program)
    return run(program, lambda: import_module(module).main())


def run(program: str, main: Callable[[], int | None]) -> int:
    """Runs a program's main function; returns its exit code."""
    try:
        return main() or 0
    except KeyboardInterrupt:
        _say(program)
        return INTERRUPTED


def expect_interrupt(program: str) -> None:
    """Makes Ctrl-C one line from here on, unless the process was started to ignore it.

    What runs is ended by `KeyboardInterrupt`, so that it can clean up. Inside an import the process ends at once: there
    is nothing to clean up, and libraries turn the exception into others or swallow it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return

    def leave() -> None:
        _say(program)
        os._exit(INTERRUPTED)

    def stop(number: int, frame: FrameType | None) -> None:
        if _imports(frame):
            leave()
        raise KeyboardInterrupt

    def unraisable(told: "sys.UnraisableHookArgs") -> None:
        # Raised where Python cannot pass it on: in a finalizer, or while threads are waited for at the end.
        if issubclass(told.exc_type, KeyboardInterrupt):
            leave()
        sys.__unraisablehook__(told)

    signal.signal(signal.SIGINT, stop)
    sys.unraisablehook = unraisable


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is what a library has made of Ctrl-C."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _imports(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _say(program: str) -> None:
    os.write(2, f"{program}: interrupted\n".encode())
