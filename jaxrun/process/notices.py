"""Lines that a user is told once, whoever reads the same file again."""

import sys

from jaxrun.terminal.printable import one_line

_told: set[str] = set()


def tell_once(line: str) -> None:
    """Prints a line to stderr, unless this process has done so before."""
    if line not in _told:
        _told.add(line)
        print(f"note: {one_line(line)}", file=sys.stderr)
