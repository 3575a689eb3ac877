"""Python values as the plain data of a config: paths, tuples, ranges, NumPy numbers and sections are taken as YAML."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import pydantic

from jaxrun.process.errors import UserError


def plain(value: Any, where: str) -> Any:
    """Returns what YAML would have given: dicts, lists, strings, numbers, booleans and None, all of them copies.

    Args:
        value: Also a path (a string), any sequence or NumPy array (a list), a NumPy number, or a section of a config
            (what was set of it).
        where: What to call it in messages.

    Raises:
        UserError: It is something else, or a key is no string.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        if (wrong := next((key for key in value if not isinstance(key, str)), None)) is not None:
            raise UserError(f"{where}: given the key {wrong!r}, expected keys that are strings")
        return {key: plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if hasattr(value, "tolist"):  # of NumPy, whose numbers are not Python's
        return plain(value.tolist(), where)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(inner, f"{where}.{number}") for number, inner in enumerate(value)]
    raise UserError(f"{where}: given a {type(value).__name__} object, expected a value that YAML has, or a path")


def path_of(value: Any, where: str) -> Path:
    """Returns a path that was given.

    Raises:
        UserError: It is neither a text nor a path, or empty.
    """
    if not isinstance(value, str | PurePath) or not str(value):
        raise UserError(f"{where}: given {value!r:.70}, expected a path")
    return Path(value)


def text_of(value: Any, where: str) -> str | None:
    """Returns a text that was given, or None.

    Raises:
        UserError: It is neither.
    """
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: given {value!r:.70}, expected text")
    return value
