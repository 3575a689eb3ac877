"""Strict configs: a YAML file or Python values plus dotted ``key=value`` overrides, checked by a pydantic model.

A wrong config is one line that says where, what was given, what was expected and the nearest valid key.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pydantic

from jaxrun.config.config_errors import Overridden, explain
from jaxrun.config.config_keys import Ours, find_key
from jaxrun.config.python_values import plain
from jaxrun.config.strict_yaml import dump_yaml, parse_yaml
from jaxrun.config.typed_values import typed_value
from jaxrun.files.foreign_files import read_bytes
from jaxrun.process.errors import UserError, nearest

Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
"""A seed: JAX's keys would take a larger one for its last 32 bits."""
CONFIG_BYTES = 2**24
"""Most bytes of a config."""
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""Characters that neither a path nor a terminal takes."""
_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_DEEPEST = 100
"""Most levels of a key."""
_MOST_DIGITS = 9
"""Of a place in a list."""


class StrictModel(pydantic.BaseModel):
    """A config section: unknown keys are errors, a string is never a number, and nothing changes after loading.

    Attributes:
        foreign_names: Names that other tools use, and what stands for them here, for the hint (``{"r": "rank"}``).
        foreign_values: The same for values of keys that have a choice (``{"bf16": "bfloat16"}``).
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), ser_json_inf_nan="constants"
    )

    foreign_names: ClassVar[Mapping[str, str | Ours]] = {}
    foreign_values: ClassVar[Mapping[str, str]] = {}


def load_config[Model: pydantic.BaseModel](
    model: type[Model],
    given: str | Path | Mapping[str, Any] | Model,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    source: str = "config",
) -> Model:
    """Reads a config, applies the overrides and checks the result.

    Relative paths inside a config stay as written, so they are relative to the working directory.

    Args:
        model: The pydantic model that the whole must match.
        given: A YAML file, or its content as Python values.
        overrides: ``a.b=1`` or ``tasks.0.name=x``, as of `typed_value`; or values by such keys.
        source: What messages call Python values.

    Raises:
        UserError: The file cannot be read, is not valid YAML, or does not match the model.
    """
    if isinstance(given, str | Path):
        tree, source = read_tree(given), str(given)
    else:
        tree = plain(given, source)
        if not isinstance(tree, dict):
            raise UserError(f"{source}: given a {type(given).__name__}, expected a path, or keys with values")
    before = copy.deepcopy(tree)
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            _set(tree, key, plain(value, key), f"override {key}")
        return check_config(model, tree, source, Overridden(before, "overrides"))
    for override in overrides:
        apply_override(model, tree, override)
    return check_config(model, tree, source, Overridden(before))


def read_tree(path: str | Path) -> dict[str, Any]:
    """Returns the keys and values of a YAML file, unchecked.

    Raises:
        UserError: The file cannot be read, or is not valid YAML with keys at its top level.
    """
    tree = parse_yaml(_read(Path(path)), str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: given a {type(tree).__name__}, expected keys with values at the top level")
    return tree


def check_config[Model: pydantic.BaseModel](
    model: type[Model], tree: dict[str, Any], source: str, overridden: Overridden | None = None
) -> Model:
    """Checks plain data against a model, as `load_config` does.

    Args:
        model: The pydantic model to match.
        tree: Plain data, as `parse_yaml` returns it.
        source: What to call the data in messages.
        overridden: The data before keys of it were overridden: what is wrong since is not blamed on `source`.

    Raises:
        UserError: The data does not match.
    """
    _check_text(tree, source, overridden)
    try:
        # Strict JSON mode refuses "16" for 16 and yet takes a list for a tuple and a string for a Path or an enum.
        return model.model_validate_json(json.dumps(tree))
    except pydantic.ValidationError as error:
        raise UserError(explain(error, model, tree, source, overridden)) from error


def _check_text(tree: dict[str, Any], source: str, overridden: Overridden | None) -> None:
    if found := next(_no_text(tree, ()), None):
        where = overridden.by if overridden and found not in _no_text(overridden.before, ()) else source
        raise UserError(f"{where}: {found}, expected valid Unicode")


def _no_text(value: Any, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _no_text(str(key), path)
            yield from _no_text(inner, (*path, str(key)))
    elif isinstance(value, str) and (found := _NO_TEXT.search(value)):
        what = "a NUL character" if found[0] == "\0" else "half a surrogate pair"
        yield f"{'.'.join(path)}: given {json.dumps(value)}, {what}"


def apply_override(model: type[pydantic.BaseModel], tree: dict[str, Any], override: str) -> None:
    """Sets one dotted key of `tree`, which is to match `model`, in place.

    Missing sections are made on the way; a list grows by one when the index is its length.

    Raises:
        UserError: Not ``key=value``, a value that is no YAML, or a key that leads through a plain value.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not _KEY.fullmatch(key):
        raise UserError(f"override '{override}': expected key=value, such as output_dir=runs/first")
    known, said = find_key(model, key), f"override '{override}'"
    _set(tree, key, typed_value(text, known[1] if known else (), said), said)


def _set(tree: dict[str, Any], key: str, value: Any, said: str) -> None:
    """Sets one dotted key of `tree` in place; `said` is what messages call the override."""
    parts = key.split(".")
    if len(parts) > _DEEPEST:
        raise UserError(f"{said}: nested too deeply, expected a key of a few levels")
    here: Any = tree
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth])
        if not isinstance(here, dict | list):
            raise UserError(f"{said}: {where} is a plain value, expected a section or a list")
        slot: str | int = part
        if isinstance(here, list):
            slot = _list_index(here, part, where, said)
        if depth == len(parts) - 1:
            here[slot] = value  # type: ignore[index]
        else:
            if (here.get(part) if isinstance(here, dict) else here[int(slot)]) is None:
                here[slot] = [] if parts[depth + 1].isdigit() else {}  # type: ignore[index]
            here = here[slot]  # type: ignore[index]


def what_was_set(model: pydantic.BaseModel) -> dict[str, Any]:
    """Returns a config as plain data, without defaults: what a section leaves out may be given by another."""
    return model.model_dump(mode="json", exclude_unset=True)


def dump_config(model: pydantic.BaseModel) -> str:
    """Returns what was set of a config, as YAML; `load_config` reads it back to an equal model."""
    return dump_yaml(what_was_set(model))


def dump_config_json(model: pydantic.BaseModel) -> str:
    """Returns what was set of a config, as one line of JSON that `model_validate_json` reads back to the same."""
    return model.model_dump_json(exclude_unset=True)


def config_diff(old: Any, new: Any) -> list[str]:
    """Returns the dotted keys at which two trees of plain data differ, in order.

    Args:
        old: Plain data, such as ``parse_yaml(dump_config(model), name)``.
        new: The same for the other config.
    """
    return list(dict.fromkeys(".".join(path) for path in _differences(old, new, ())))


def _differences(old: Any, new: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        found: list[tuple[str, ...]] = []
        for key in keys:
            if key not in old or key not in new:
                found.append((*path, str(key)))
            else:
                found += _differences(old[key], new[key], (*path, str(key)))
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            difference
            for index, (before, after) in enumerate(zip(old, new, strict=True))
            for difference in _differences(before, after, (*path, str(index)))
        ]
    same = type(old) is type(new) and (old == new or (old != old and new != new))
    return [] if same else [path]


def _list_index(items: list[Any], part: str, where: str, said: str) -> int:
    if not part.isdigit() or len(part) > _MOST_DIGITS or int(part) > len(items):
        raise UserError(f"{said}: given {where}.{part}, expected an index from 0 to {len(items)}")
    index = int(part)
    if index == len(items):
        items.append(None)
    return index


def _read(path: Path) -> str:
    try:
        if path.exists() and not path.is_dir():
            return read_bytes(path, CONFIG_BYTES).decode("utf-8")
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        beside = path.parent.glob("*.y*ml") if path.parent.is_dir() else ()
        hint = nearest(path.name, [other.name for other in beside])
        raise UserError(f"{path}: no such config file{hint}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder, expected a YAML file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}), expected a YAML file") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected a readable YAML file") from error
