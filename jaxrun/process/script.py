"""Imported first by every script: from here on Ctrl-C ends it with one line and exit code 130, wrong input with 2."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from jaxrun.process import startup
from jaxrun.process.errors import UserError


def run_script(main: Callable[[], int | None]) -> int:
    """Runs the script's main function; returns its exit code."""
    program = Path(sys.argv[0])
    try:
        return startup.run(program.name, main)
    except UserError as error:
        print(f"{program.stem}: error: {error}", file=sys.stderr)
        return 2


def _is_program(frame: FrameType | None) -> bool:
    """Whether what imports this is the program itself, or a process of it, and not a test that imports a script."""
    while frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") in ("__main__", "__mp_main__")


if _is_program(sys._getframe(1)):
    startup.expect_interrupt(Path(sys.argv[0]).name)
