"""What the ``key=value`` words after a verb may be."""

import inspect
import json
import re
from collections.abc import Sequence
from typing import Any

import pydantic

from harness.config import StrictModel, apply_override, check_config
from harness.errors import UserError


def told(model: type[StrictModel]) -> dict[str, str]:
    """Returns what the docstrings of a settings model say of each key, with its default; its own keys come first."""
    found: dict[str, str] = {}
    for kind in model.__mro__:
        if not issubclass(kind, StrictModel) or kind is StrictModel:
            continue
        listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
        for entry in re.split(r"\n(?=    \w)", f"\n{listed}"):
            name, _, text = " ".join(entry.replace("``", "").split()).partition(": ")
            if name in model.model_fields:
                key = model.model_fields[name]
                section = isinstance(key.default, pydantic.BaseModel)
                silent = key.is_required() or section or key.default in (None, "", {})
                found[name] = text if silent else f"{text} ({json.dumps(key.default)})"
    return found


def read_settings[Model: StrictModel](model: type[Model], words: Sequence[str], *, text: Sequence[str] = ()) -> Model:
    """Checks the ``key=value`` words of a verb.

    Args:
        model: What they may be.
        words: As typed.
        text: Keys whose value is taken letter by letter; every other is YAML.

    Raises:
        UserError: An unknown key or a wrong value.
    """
    tree: dict[str, Any] = {}
    keys = []
    for word in words:
        key, _, value = word.partition("=")
        if key in text:
            tree[key] = value
            keys.append(key)
        else:
            keys.append(apply_override(tree, word))
    return check_config(model, tree, "command line", keys)


def take_overwrite(words: Sequence[str]) -> tuple[bool, list[str]]:
    """Takes ``overwrite=true`` or ``overwrite=false`` out of the words after a config.

    Returns:
        Whether to overwrite, and the other words.

    Raises:
        UserError: Neither true nor false.
    """
    given = [word.partition("=")[2].lower() for word in words if word.partition("=")[0] == "overwrite"]
    if given and given[-1] not in ("true", "false"):
        raise UserError(f"overwrite: given '{given[-1]}', expected true or false")
    return given[-1:] == ["true"], [word for word in words if word.partition("=")[0] != "overwrite"]
