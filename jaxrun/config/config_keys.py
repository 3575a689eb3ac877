"""The keys of a config, for help and hints."""

from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo

from jaxrun.process.errors import misspelt

_SURE = 6
"""Letters that a name must have to be taken for a misspelt key of another section."""


class Ours(NamedTuple):
    """The key here for a name that other tools use.

    Attributes:
        key: The key, from the section on whose table this is, such as ``stalled.patience``; empty where there is none.
        note: How it differs, such as its unit, or why there is none.
    """

    key: str = ""
    note: str = ""


class Key(NamedTuple):
    """A key of a config.

    Attributes:
        dotted: Where it stands, as it is written on the command line; of a list the first item, of a mapping ``NAME``.
        section: The model that has it.
        name: Its name there.
        field: What pydantic knows of it.
    """

    dotted: str
    section: type[pydantic.BaseModel]
    name: str
    field: FieldInfo


def sections_in(annotation: Any) -> Iterator[tuple[str, type[pydantic.BaseModel]]]:
    """Yields the models that a value may be, each with the way from the value to it: nothing, ``.0`` or ``.NAME``."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield "", annotation
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from sections_in(arguments[0])
    elif origin in (Union, UnionType):
        for one in arguments:
            yield from sections_in(one)
    elif arguments:
        step = ".NAME" if origin is dict else ".0"
        yield from ((step + way, model) for way, model in sections_in(arguments[-1 if origin is dict else 0]))


def keys_of(model: type[pydantic.BaseModel], at: str = "", above: tuple[type, ...] = ()) -> Iterator[Key]:
    """Yields every key of a config and of its sections, depth first; a section that holds itself is entered once.

    Args:
        model: The config's model.
        at: What stands before its keys, such as ``search.``.
        above: Models that it stands in.
    """
    for name, field in model.model_fields.items():
        dotted = f"{at}{field.alias or name}"
        yield Key(dotted, model, name, field)
        for way, inner in sections_in(field.annotation):
            if inner is not model and inner not in above:
                yield from keys_of(inner, f"{dotted}{way}.", (*above, model))


def find_key(model: type[pydantic.BaseModel], dotted: str) -> tuple[str, list[Any]] | None:
    """Returns a key as the model writes it, and the types that its value may have; None where there is no such key.

    Args:
        model: The config's model.
        dotted: The key, in which a dash may stand for an underscore, but not in a name that the user chose.
    """
    path: list[str] = []
    kinds: list[Any] = [model]
    for part in dotted.split("."):
        name, kinds = _below(kinds, part)
        if not kinds:
            return None
        path.append(name)
    return ".".join(path), kinds


def _below(kinds: Sequence[Any], part: str) -> tuple[str, list[Any]]:
    """Returns one part of a key as it is written, and the types of what it leads to from a value of any of `kinds`."""
    found: list[Any] = []
    name = part
    for kind in kinds:
        origin, arguments = get_origin(kind), get_args(kind)
        if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
            for own, field in kind.model_fields.items():
                if (field.alias or own) == part.replace("-", "_"):
                    name = field.alias or own
                    found += _kinds(field.annotation)
        elif origin is dict or (origin in (list, tuple) and part.isdigit()):
            found += _kinds(arguments[1 if origin is dict else 0])
        elif kind is Any:
            found.append(Any)
    return name, found


def _kinds(annotation: Any) -> list[Any]:
    """Returns the types of which a value may be, those of unions one by one and without their bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds(arguments[0])
    return [kind for one in arguments for kind in _kinds(one)] if origin in (Union, UnionType) else [annotation]


def models_at(model: type[pydantic.BaseModel], path: Sequence[str]) -> list[type[pydantic.BaseModel]]:
    """Returns the models that could hold what stands at `path`; list indices and names of a mapping pass through."""
    current = [model]
    for part in path:
        below = [
            inner
            for candidate in current
            for name, field in candidate.model_fields.items()
            if (field.alias or name) == part
            for _, inner in sections_in(field.annotation)
        ]
        current = below or current
    return list(dict.fromkeys(current))


def field_names(model: type[pydantic.BaseModel]) -> list[str]:
    """Returns the keys of one section as they are written."""
    return [field.alias or name for name, field in model.model_fields.items()]


def meant(name: str, model: type[pydantic.BaseModel], path: Sequence[str] = (), given: Any = None) -> list[Ours]:
    """Returns what an unknown key may stand for, surest first; two where both are as likely, none where nobody knows.

    In this order: what its section's table of foreign names says; the same name in a section below it, then anywhere;
    a foreign name of a section below, then of any; a misspelt key of its section, then of any other.

    Args:
        name: The unknown key.
        model: The config's model.
        path: The section in which it was given.
        given: Its value: what has keys of its own stands for no plain key of the same name.

    Returns:
        Keys relative to that section where they stand in it, else dotted from the top.
    """
    here, inside = models_at(model, path), ".".join([*path, ""]) if path else ""
    for section in here:
        if name in (table := _foreign(section)):
            return [table[name]]
    below = [key for section in here for key in keys_of(section, inside)]
    every = list(keys_of(model))
    for keys in (below, every):
        alike = [key for key in keys if key.dotted.split(".")[-1] == name]
        if isinstance(given, dict):
            alike = [key for key in alike if any(sections_in(key.field.annotation))]
        if found := _shallowest([Ours(key.dotted) for key in alike]):
            return found
    for keys in (below, every):
        places = dict.fromkeys((key.dotted.rpartition(".")[0], key.section) for key in keys)
        told = [_within(at, _foreign(section)[name]) for at, section in places if name in _foreign(section)]
        if found := _shallowest(told):
            return found
    valid = list(dict.fromkeys(key for section in here for key in field_names(section)))
    if found_here := misspelt(name, valid):
        return [Ours(found_here)]
    if len(name) < _SURE or not (leaf := misspelt(name, (key.dotted.split(".")[-1] for key in every))):
        return []
    return _shallowest([Ours(key.dotted) for key in every if key.dotted.split(".")[-1] == leaf])


def did_you_mean(found: Sequence[Ours]) -> str:
    """Returns the hint that names what `meant` found, or an empty string."""
    if not found:
        return ""
    keys = " or ".join(f"'{one.key}'" for one in found if one.key)
    question = f"did you mean {keys}?" if keys else ""
    return f" ({' '.join(part for part in (question, found[0].note) if part)})"


def _foreign(section: type[pydantic.BaseModel]) -> dict[str, Ours]:
    table = getattr(section, "foreign_names", {})
    return {name: Ours(told) if isinstance(told, str) else told for name, told in table.items()}


def _within(at: str, told: Ours) -> Ours:
    return told._replace(key=f"{at}.{told.key}") if at and told.key else told


def _shallowest(found: Sequence[Ours]) -> list[Ours]:
    """Those with the fewest dots; none where more than two are alike."""
    depth = min((one.key.count(".") for one in found), default=0)
    best = list(dict.fromkeys(one for one in found if one.key.count(".") == depth))
    return best if len(best) <= 2 else []
