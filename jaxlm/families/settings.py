"""Reads config.json with one-line errors that name the file and the key."""

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from jaxrun.process.errors import UserError

_LARGEST = 2**31 - 1
_MOST = {"num_hidden_layers": 4096, "conv_L_cache": 1024}
"""Largest counts that are accepted: a larger one is no model, and loops over it would run before weights are sought."""


class Settings:
    """A config.json.

    Attributes:
        raw: Its content.
        where: Its name in messages.
        names: Keys as the family spells them, where other than as Llama does.
        asked: Keys, as the file spells them, whose values were asked for.
    """

    def __init__(self, raw: Mapping[str, Any], where: str, names: Mapping[str, str] | None = None):
        self.raw, self.where, self.names = raw, where, names or {}
        self.asked: set[str] = set()

    def fail(self, key: str, expected: str) -> UserError:
        """Returns the error of a key whose value is another than expected."""
        name = self.names.get(key, key)
        return UserError(f"{self.where}: {name} is {short(self.raw.get(name))}, expected {expected}")

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a value as it stands; null is the default."""
        value = self.raw.get(self._ask(key))
        return default if value is None else value

    def is_null(self, key: str) -> bool:
        """Whether a key is present and null."""
        name = self._ask(key)
        return name in self.raw and self.raw[name] is None

    def count(self, key: str, default: int | None = None) -> int:
        """Returns a whole number above 0."""
        value = self.get(key, default)
        if not is_whole(value) or value < 1:
            raise self.fail(key, "a whole number above 0")
        if value > (most := _MOST.get(key, _LARGEST)):
            raise self.fail(key, f"at most {most:,}")
        return int(value)

    def number(self, key: str, default: float) -> float:
        """Returns a finite number above 0."""
        value = self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.fail(key, "a finite number above 0")
        return float(min(value, sys.float_info.max))

    def flag(self, key: str, default: bool) -> bool:
        """Returns true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def token(self, key: str, default: int | None) -> int | None:
        """Returns a token id; null is none."""
        value = self.raw.get(self._ask(key), default)
        if value is None or is_whole(value):
            return value
        raise self.fail(key, "a token id")

    def tokens(self, key: str, default: int | None) -> tuple[int, ...]:
        """Returns a list of token ids, of which one may stand alone; null is none."""
        value = self.raw.get(self._ask(key), default)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(is_whole(item) for item in values):
            raise self.fail(key, "a token id or a list of them")
        return tuple(values)

    def word(self, key: str, known: Iterable[str], default: str) -> str:
        """Returns one of the words that are known."""
        value = self.get(key, default)
        words = list(known)
        if not isinstance(value, str) or value not in words:
            raise self.fail(key, f"one of {', '.join(words)}")
        return value

    def section(self, key: str) -> Mapping[str, Any]:
        """Returns a section of keys; null is an empty one."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self.fail(key, "a section of keys")
        return value

    def _ask(self, key: str) -> str:
        """Returns a key as the file spells it, and remembers it."""
        name = self.names.get(key, key)
        self.asked.add(name)
        return name


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, which true is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def short(value: Any) -> str:
    """Returns a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
