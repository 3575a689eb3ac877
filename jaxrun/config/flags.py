"""Keys on a command line: ``--key=value``, ``--key value`` and ``key=value`` are the same.

Dashes in a key stand for underscores. A key that is true or false may stand alone, as ``--overwrite`` for
``overwrite=true`` or ``--no-overwrite`` for ``overwrite=false``; any other takes the word after it, so that no argument
is taken for a value. After ``--`` no word is a flag. Of a key that is given again the last value counts.
"""

import re
from collections.abc import Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pydantic

from jaxrun.config.config_keys import Ours, did_you_mean, field_names, find_key, keys_of, meant, models_at
from jaxrun.process.errors import UserError, misspelt, nearest

COMMON = ("help", "debug")
"""Flags of every verb, which are read before its keys."""
_ASSIGNED = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)
_NUMBER = re.compile(r"-\.?[0-9].*")


def read_flags(
    words: Sequence[str], models: Sequence[type[pydantic.BaseModel]], names: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Splits words into those that stand for themselves and keys with values.

    Args:
        words: As typed.
        models: What keys there are; a key of an earlier model comes before the same of a later one.
        names: Other keys, which take any text.

    Returns:
        The words that are no key, and each key with its value as ``key=value``; both in order.

    Raises:
        UserError: A flag that is no key, or one without its value.
    """
    plain: list[str] = []
    keyed: list[str] = []
    rest, flags_end = list(words), False
    while rest:
        word = rest.pop(0)
        if word == "--" and not flags_end:
            flags_end = True
        elif flags_end or not is_flag(word):
            assigned = _ASSIGNED.fullmatch(word)
            found = _find(assigned[1], models, names) if assigned else None
            if assigned and (models or found):
                key = found[0] if found else assigned[1]
                keyed.append(f"{key}={assigned[2]}")
            else:
                plain.append(word)
        else:
            keyed.append(read_flag(word, rest, models, names))
    return plain, keyed


def is_flag(word: str) -> bool:
    """Whether a word is a flag: it begins with a dash, and is neither a dash alone nor a number."""
    return word.startswith("-") and word != "-" and not _NUMBER.fullmatch(word)


def read_flag(word: str, rest: list[str], models: Sequence[type[pydantic.BaseModel]], names: Sequence[str] = ()) -> str:
    """Returns a flag as ``key=value``, for which it may take the first word of the `rest`.

    Raises:
        UserError: A flag that is no key, or one without its value.
    """
    flag, equals, value = word.partition("=")
    name = flag.removeprefix("--")
    found = _find(name, models, names) if flag.startswith("--") else None
    if found is None and re.match("--no[-_]", flag):
        found = _find(name[3:], models, names)
        if found is None or not (words := _words_of_switch(found[1])):
            raise _unknown(flag, models, names)
        if equals:
            raise UserError(f"given '{word}', expected {flag} alone")
        return f"{found[0]}=false"
    if found is None:
        raise _unknown(flag, models, names)
    key, kinds = found
    if not equals:
        words = _words_of_switch(kinds)
        if words and (not rest or rest[0].lower() not in words):
            value = "true"
        elif not rest or rest[0].startswith("--"):
            raise UserError(f"{flag}: no value given, expected {flag}=VALUE")
        else:
            value = rest.pop(0)
    return f"{key}={value}"


def _find(name: str, models: Sequence[type[pydantic.BaseModel]], names: Sequence[str]) -> tuple[str, list[Any]] | None:
    """Returns a key as its model writes it, with the types that its value may have."""
    if name in names:
        return name, [str]
    return next((found for model in models if (found := find_key(model, name))), None)


def _words_of_switch(kinds: Sequence[Any]) -> set[str]:
    """Returns the words that may follow a key that can stand alone; none where it cannot, as it takes any text."""
    if bool not in kinds or not all(kind in (bool, NoneType) or get_origin(kind) is Literal for kind in kinds):
        return set()
    words = {str(one).lower() for kind in kinds for one in get_args(kind)}
    return words | {"true", "false"} | ({"null"} if NoneType in kinds else set())


def _unknown(flag: str, models: Sequence[type[pydantic.BaseModel]], names: Sequence[str]) -> UserError:
    hint = nearest(flag, [f"--{name}" for name in (*names, *COMMON)]) or next(
        (did_you_mean(found) for model in models if (found := _meant(flag, model))), ""
    )
    return UserError(f"unknown flag '{flag}'{hint}")


def _meant(flag: str, model: type[pydantic.BaseModel]) -> list[Ours]:
    """Returns the keys that an unknown flag may stand for, dotted from the top."""
    *path, last = flag.lstrip("-").replace("-", "_").split(".")
    for at, part in enumerate(path):
        known = [name for section in models_at(model, path[:at]) for name in field_names(section)]
        if part not in known and not part.isdigit():
            dotted = ".".join([*path[:at], misspelt(part, known) or part, *path[at + 1 :], last])
            return [Ours(dotted)] if find_key(model, dotted) else meant(last, model)
    inside = "".join(f"{part}." for part in path)
    return [one._replace(key=_whole(inside, one.key, model)) for one in meant(last, model, path)]


def _whole(inside: str, key: str, model: type[pydantic.BaseModel]) -> str:
    """Returns a key that is meant within a section from the top, with the places in lists that were left out."""
    whole = {re.sub(r"\.(0|NAME)(?=\.)", "", one.dotted): one.dotted for one in keys_of(model)}
    if find_key(model, inside + key):
        return inside + key
    return whole.get(inside + key) or whole.get(key) or key
