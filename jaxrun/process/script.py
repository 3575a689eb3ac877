"""Imported first by every script: from here on Ctrl-C ends it with one line and exit code 130, wrong input with 2.

So does a library that is missing, such as PyTorch outside the environment of reference, be it as the script begins.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

from jaxrun.process import startup
from jaxrun.process.errors import UserError


def run_script(main: Callable[[], int | None]) -> int:
    """Runs the script's main function; returns its exit code."""
    program = Path(sys.argv[0])
    try:
        return startup.run(program.name, main)
    except UserError as error:
        line = str(error)
    except ModuleNotFoundError as error:
        line = _missing(error)
    print(f"{program.stem}: error: {line}", file=sys.stderr)
    return 2


def _is_program(frame: FrameType | None) -> bool:
    """Whether what imports this is the program itself, or a process of it, and not a test that imports a script."""
    while frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") in ("__main__", "__mp_main__")


def _missing(error: ModuleNotFoundError) -> str:
    return f"{error.name} is not installed, expected it; `make reference` makes an environment with PyTorch and PEFT"


def _before_it_runs(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Says in a line what is missing; all else is shown as Python shows it."""
    if not isinstance(error, ModuleNotFoundError):
        return sys.__excepthook__(kind, error, trace)
    os.write(2, f"{Path(sys.argv[0]).stem}: error: {_missing(error)}\n".encode())
    os._exit(2)


if _is_program(sys._getframe(1)):
    startup.expect_interrupt(Path(sys.argv[0]).name)
    sys.excepthook = _before_it_runs
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # which would tell of PyTorch in a second line
