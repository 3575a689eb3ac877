"""Values of keys as they are typed on a command line: YAML, but for what a key that takes text would lose by it."""

from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from yaml.reader import Reader

from jaxrun.config.strict_yaml import parse_yaml

_TEXT = (str, Path)
_NULL = ("~", "null", "Null", "NULL")


def typed_value(text: str, kinds: Sequence[Any], source: str) -> Any:
    """Returns what a value stands for, by the types that its key may have.

    A key of text takes what was typed letter by letter, be it ``a: b``, ``x # 2`` or ``2026``, but for text in quotes
    and, where the key may be null, ``null``. One that may be text or more takes as text what is none of the others. A
    key of lists, but not of text, takes them with commas: ``8,16``. Nothing is null.

    Args:
        text: As typed.
        kinds: The types of which the value may be, as of `find_key`; none where the key is not known.
        source: What to call it in messages.

    Raises:
        UserError: It is no YAML where it has to be, or has control characters.
    """
    takes_text = any(kind in _TEXT for kind in kinds) and text[:1] not in ("", "'", '"')
    if takes_text and not Reader.NON_PRINTABLE.search(text):
        null = NoneType in kinds and text in _NULL
        if all(kind in (*_TEXT, NoneType) for kind in kinds) and not null:
            return text
        value = parse_yaml(text, source)
        return value if _fits(value, kinds) else text
    return parse_yaml(_listed(text, kinds), source)


def _fits(value: Any, kinds: Sequence[Any]) -> bool:
    """Whether a value is of a key's other types; one that is not plain is for the model to judge."""
    chosen = [one for kind in kinds if get_origin(kind) is Literal for one in get_args(kind)]
    others = {*kinds} - {str} | ({int} if float in kinds else set())
    plain = value is None or isinstance(value, bool | int | float | str)
    return not plain or type(value) in others or value in chosen


def _listed(text: str, kinds: Sequence[Any]) -> str:
    """Returns a value with brackets around, where it has commas and is of a key that takes a list and no text."""
    takes_list = any(get_origin(kind) in (list, tuple) for kind in kinds) and not {*_TEXT} & {*kinds}
    return f"[{text}]" if takes_list and "," in text and text[0] not in "[{" else text
