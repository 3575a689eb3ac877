"""Regular expressions that users and files bring: matched within a time limit, for some never end."""

import time
from collections import deque
from collections.abc import Callable

import regex

from jaxrun.process.errors import UserError

LIMIT_S = 2.0
"""Seconds that all matches of one pattern may take together."""
LONGEST = 10_000
"""Characters of a pattern."""


class Pattern:
    """A compiled regular expression."""

    def __init__(self, text: str, where: str, limit_s: float = LIMIT_S) -> None:
        """Compiles it.

        Args:
            text: The expression, as Python's `re` understands it.
            where: What to call it in messages.
            limit_s: Seconds that all matches may take together.

        Raises:
            UserError: It is no regular expression.
        """
        self._text, self._where, self._left_s = text, where, limit_s
        if len(text) > LONGEST:
            raise UserError(f"{where}: {len(text):,} characters, expected a regular expression of at most {LONGEST:,}")
        try:
            self._compiled = regex.compile(text)
        except (regex.error, RecursionError, OverflowError) as error:
            raise UserError(f"{where}: '{self._shown}' is not a regular expression: {error}") from None

    def fullmatch(self, text: str) -> regex.Match[str] | None:
        """Returns the match of the whole of a text, or None.

        Raises:
            UserError: The time is up.
        """
        return self._timed(self._compiled.fullmatch, text)

    def match(self, text: str) -> regex.Match[str] | None:
        """Returns the match at the beginning of a text, or None; raises likewise."""
        return self._timed(self._compiled.match, text)

    def search(self, text: str) -> regex.Match[str] | None:
        """Returns the first match anywhere in a text, or None; raises likewise."""
        return self._timed(self._compiled.search, text)

    def last(self, text: str) -> regex.Match[str] | None:
        """Returns the last match in a text, or None; raises likewise."""

        def last(text: str, timeout: float) -> regex.Match[str] | None:
            every = deque(self._compiled.finditer(text, timeout=timeout), maxlen=1)
            return every[0] if every else None

        return self._timed(last, text)

    @property
    def _shown(self) -> str:
        return self._text if len(self._text) <= 80 else f"{self._text[:79]}…"

    def _timed(self, call: Callable[..., regex.Match[str] | None], text: str) -> regex.Match[str] | None:
        begun = time.monotonic()
        try:
            return call(text, timeout=max(self._left_s, 1e-3))
        except TimeoutError:
            raise UserError(
                f"{self._where}: '{self._shown}' takes too long to match, expected a pattern without nested repeats"
            ) from None
        finally:
            self._left_s -= time.monotonic() - begun
