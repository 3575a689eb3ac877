"""Imported first by every script: from here on Ctrl-C ends it with one line and exit code 130."""

import sys
from collections.abc import Callable
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
_SCRIPT = Path(sys.argv[0]).resolve()
sys.path.append(str(_FOLDER.parent))  # an environment for comparisons has nothing of ours installed

from jaxrun.process import startup  # noqa: E402

if _SCRIPT.parent == _FOLDER:  # and not a test that imports a script
    startup.expect_interrupt(_SCRIPT.name)


def run(main: Callable[[], int | None]) -> int:
    """Runs the script's main function; returns its exit code."""
    return startup.run(_SCRIPT.name, main)
