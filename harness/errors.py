"""The one kind of error a user can cause, and the hint that goes with it."""

import difflib
from collections.abc import Iterable, Mapping


class UserError(Exception):
    """Wrong input, in one line: what was given, where, what was expected. The command line prints it and exits 2."""


def nearest(name: str, valid: Iterable[str], foreign: Mapping[str, str] | None = None) -> str:
    """Returns ``" (did you mean 'x'?)"`` for the valid name closest to `name`, or an empty string.

    Args:
        name: What the user wrote.
        valid: The names that would have been right.
        foreign: Names that other tools use for the same thing, mapped to ours; they win over spelling.
    """
    if foreign and name in foreign:
        return f" (did you mean '{foreign[name]}'?)"
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
