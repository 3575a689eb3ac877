"""Feeds a reader with what no honest program writes, for as long as it is told.

A reader may end in two ways: it reads, or it refuses in one line. `FUZZ_SECONDS` says how long each is fed; without
it each gets the same few inputs every time, so that a failure is one of the change at hand.
"""

import os
import time
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from jaxrun.process.errors import UserError

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
ROUND = 20
"""Inputs between two looks at the clock, and all of them where no seconds are given."""
LONGEST = 1500
"""Characters of the longest line that a user is shown."""


def fuzz[Input](read: Callable[[Input], object], inputs: SearchStrategy[Input], *known: Input) -> None:
    """Feeds a reader.

    Args:
        read: Reads one input.
        inputs: What to feed it.
        known: Inputs that come first, such as those that once did harm.
    """
    for one in known:
        expect_an_end(read, one)

    @settings(max_examples=ROUND, deadline=None, suppress_health_check=list(HealthCheck), derandomize=not SECONDS)
    @given(inputs)
    def feed(one: Input) -> None:
        expect_an_end(read, one)

    feed()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        feed()


def expect_an_end[Input](read: Callable[[Input], object], one: Input) -> None:
    """Reads one input; what is raised is a `UserError` of one line that can be printed."""
    try:
        read(one)
    except UserError as error:
        line = str(error)
        assert line.strip() and "\n" not in line and len(line) <= LONGEST, line
        line.encode("utf-8")


def run_verb(main: Callable[[list[str]], int], capsys, *words: str) -> int:
    """Runs a verb of a program as a shell would; it succeeds, or says one line and exits with 2."""
    capsys.readouterr()
    code = main(list(words))
    said = capsys.readouterr().err
    assert code in (0, 2), said
    if code == 2:
        assert said.count("\n") == 1 and len(said) <= LONGEST, said
    return code
