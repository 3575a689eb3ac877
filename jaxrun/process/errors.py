"""Errors that a user can cause, and their hints."""

import re
from collections.abc import Iterable

from jaxrun.terminal.printable import one_line


class UserError(Exception):
    """Wrong input, in one line: what was given, where, what was expected. The command line prints it and exits 2."""

    def __init__(self, line: str) -> None:
        """Makes it one line that can be printed, whatever of what was given it repeats."""
        super().__init__(one_line(line))


class NothingYet(UserError):
    """The file of a journal is empty: its run is about to fill it, or was killed then."""


class Failure(Exception):
    """A failure though the input was right, in one line that says which other would help. The command line exits 2."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns ``" (did you mean 'x'?)"`` for the one valid name that `name` misspells, or an empty string.

    Args:
        name: What the user wrote.
        valid: The names that would have been right.
    """
    found = misspelt(name, valid)
    return f" (did you mean '{found}'?)" if found else ""


def misspelt(name: str, valid: Iterable[str]) -> str | None:
    """Returns the valid name that `name` misspells, or None where there is none or more than one.

    Case and what stands between words do not count. Each word may have one slip, one of eight letters or more two: a
    letter too many, too few or wrong, or two neighbours exchanged. Words of one or two letters and digits must be
    right: ``top_p`` is no ``top_k``, ``beta3`` no ``beta1``, and ``max`` no ``min``.

    Args:
        name: What the user wrote.
        valid: The names that would have been right.
    """
    far = {other: _slips(name, other) for other in dict.fromkeys(valid)}
    near = {other: slips for other, slips in far.items() if slips is not None}
    best = [other for other, slips in near.items() if slips == min(near.values())]
    return best[0] if len(best) == 1 else None


def _slips(name: str, other: str) -> int | None:
    words, others = _words(name), _words(other)
    if "".join(words) == "".join(others):
        return 0
    if len(words) != len(others):
        return None
    total = 0
    for mine, its in zip(words, others, strict=True):
        slips = _distance(mine, its)
        if slips > _allowed(its) or re.findall(r"\d", mine) != re.findall(r"\d", its):
            return None
        total += slips
    return total


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower())


def _allowed(word: str) -> int:
    return 0 if len(word) < 3 else 1 if len(word) < 8 else 2


def _distance(one: str, other: str) -> int:
    """Insertions, deletions, substitutions and exchanges of neighbours between two words (optimal string alignment)."""
    before, row = [0], list(range(len(other) + 1))
    for i, mine in enumerate(one, start=1):
        older, before, row = before, row, [i]
        for j, its in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (mine != its)))
            if i > 1 and j > 1 and mine == other[j - 2] and one[i - 2] == its:
                row[j] = min(row[j], older[j - 2] + 1)
    return row[-1]
