"""The keys of a config as help shows them: what each means, its type and its default, out of models and docstrings."""

import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import pydantic
from pydantic_core import to_jsonable_python

from jaxrun.config.config_keys import field_names, meant, sections_in
from jaxrun.process.errors import UserError

ALL = "all"
"""The topic of help under which all keys are listed, those of sections too."""
_NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text", NoneType: "null"}
_OR_NULL = " or null"
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


class Told(NamedTuple):
    """A key of one section.

    Attributes:
        meaning: What its docstring says.
        kind: The type of its values, in words.
        default: What it is unless it is given; empty for a section, and where it must be given.
        sections: Models of the sections that it may be, each with the way to it, as of `sections_in`.
        required: Whether it must be given.
    """

    meaning: str
    kind: str
    default: str
    sections: tuple[tuple[str, type[pydantic.BaseModel]], ...]
    required: bool

    def __str__(self) -> str:
        end = "must be given" if self.required else self.default and f"default {self.default}"
        return f"{self.meaning} [{'; '.join(part for part in (self.kind, end) if part)}]"


def told(model: type[pydantic.BaseModel]) -> dict[str, Told]:
    """Returns the keys of one section: its own first, then those of the models that it extends."""
    meanings: dict[str, str] = {}
    for base in model.__mro__:
        if issubclass(base, pydantic.BaseModel) and "Attributes:" in (base.__doc__ or ""):
            meanings = {**meanings, **{k: v for k, v in _attributes(base.__doc__ or "").items() if k not in meanings}}
    own = [name for name in meanings if name in model.model_fields]
    found = {}
    for name in dict.fromkeys([*own, *model.model_fields]):
        field = model.model_fields[name]
        sections = tuple(sections_in(field.annotation))
        kind = described(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        default = extra.get("default", field.get_default(call_default_factory=True)) if not field.is_required() else ""
        silent = field.is_required() or isinstance(default, pydantic.BaseModel)
        meaning = meanings.get(name) or (_head(sections[0][1]) if sections else "")
        found[field.alias or name] = Told(
            meaning, kind, "" if silent else _shown(default), sections, field.is_required()
        )
    return found


def described(annotation: Any) -> str:
    """Returns the type of a value in words: ``whole number ≥ 1, list of them, {min, max, log} or null``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kind = described(arguments[0])
        return kind.removesuffix(_OR_NULL) + _bounds(arguments[1:]) + (_OR_NULL if kind.endswith(_OR_NULL) else "")
    if origin in (Union, UnionType):
        kinds = [described(one) for one in _flat(arguments) if one is not NoneType]
        lists = [f"list of {kind}" for kind in kinds] + [f"list of ({kind}{_OR_NULL})" for kind in kinds]
        kinds = ["list of them" if kind in lists else kind for kind in dict.fromkeys(kinds)]
        null = _OR_NULL if NoneType in _flat(arguments) else ""
        return (", " if null else " or ").join(dict.fromkeys(kinds)) + null
    if origin is Literal:
        return " | ".join(str(one) for one in arguments)
    if origin is dict:
        return f"section of {'GPUs' if arguments[0] is int else 'names'}, each: {described(arguments[1])}"
    if origin in (list, tuple):
        inner = described(arguments[0])
        inner = f"({inner})" if " or " in inner else inner
        return f"list of {inner}" if origin is list or arguments[-1] is ... else f"list of {len(arguments)}: {inner}"
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return "{" + ", ".join(field_names(annotation)) + "}" if len(annotation.model_fields) <= 3 else "section"
    return _NAMES.get(annotation, str(getattr(annotation, "__name__", annotation)))


def _shown(default: Any) -> str:
    plain = to_jsonable_python(default)
    return plain if isinstance(plain, str) and plain.isprintable() and plain.strip() else json.dumps(plain)


def _flat(arguments: Sequence[Any]) -> list[Any]:
    """The members of a union, those of unions in it among them."""
    found: list[Any] = []
    for one in arguments:
        found += _flat(get_args(one)) if get_origin(one) in (Union, UnionType) else [one]
    return found


def listing(models: Sequence[type[pydantic.BaseModel]], topic: str, *, width: int, more: str) -> str:
    """Returns the keys of configs as lines: those at the top, those of a section, one alone, or all.

    Args:
        models: The configs whose keys may be given.
        topic: A dotted key or section, `ALL`, or nothing for the top.
        width: Columns of a line.
        more: How to ask for a section, such as ``altojax tune --help``.

    Raises:
        UserError: There is no such key.
    """
    if topic in ("", ALL):
        margin = max(_margin(model, "") for model in models)
        return "\n".join(line for model in models for line in _section(model, "", topic == ALL, width, more, margin))
    path = topic.split(".")
    for model in models:
        shown = _at(model, path, width, more)
        if shown:
            return "\n".join(shown)
    found = [one.key for model in models for one in meant(path[-1], model, path[:-1]) if one.key]
    hint = f" (did you mean '{found[0]}'?)" if len(found) == 1 else ""
    raise UserError(f"help: no key '{topic}'{hint}, expected one that {more} lists, or {ALL}")


def _at(model: type[pydantic.BaseModel], path: Sequence[str], width: int, more: str) -> list[str]:
    """Lines about the key at `path`, and about what is in it; nothing where there is none."""
    here: list[tuple[str, type[pydantic.BaseModel]]] = [("", model)]
    entry: Told | None = None
    for part in path:
        named = [entries[part] for entries in (told(section) for _, section in here) if part in entries]
        if named:
            entry = named[0]
            here = list(dict.fromkeys(inner for one in named for inner in one.sections))
        elif any(way for way, _ in here):
            here = [("", section) for _, section in here]
        else:
            return []
    assert entry is not None
    lines = _entry(".".join(path), entry, 0, width)
    for way, section in here:
        head = inspect.cleandoc(section.__doc__ or "").partition("Attributes:")[0]
        lines += ["", *textwrap.wrap(" ".join(head.replace("`", "").split()), width), ""]
        lines += _section(section, f"{'.'.join(path)}{way}.", False, width, more)
    return lines


def _section(
    model: type[pydantic.BaseModel],
    at: str,
    deep: bool,
    width: int,
    more: str,
    margin: int = 0,
    above: tuple[type, ...] = (),
) -> Iterator[str]:
    margin = margin or _margin(model, at)
    for name, entry in told(model).items():
        inner = [one for one in entry.sections if one[1] is not model and one[1] not in above]
        pointer = inner and not deep and "section" in entry.kind
        yield from _entry(at + name, entry, margin, width, f"{more} {at}{name}" if pointer else "")
        if deep:
            for way, section in inner:
                yield from _section(section, f"{at}{name}{way}.", True, width, more, above=(*above, model))


def _margin(model: type[pydantic.BaseModel], at: str) -> int:
    """Columns of the keys of a section; longer ones stand on lines of their own."""
    return 2 + max((len(at + name) for name in field_names(model) if len(at + name) < 28), default=20)


def _entry(name: str, entry: Told, margin: int, width: int, pointer: str = "") -> list[str]:
    text = f"{entry}"[:-1] + f": {pointer}]" if pointer else str(entry)
    if len(name) + 2 > margin:
        return [f"  {name}", *textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return textwrap.wrap(
        text, width, initial_indent=f"  {name:<{margin}}", subsequent_indent=" " * (margin + 2), break_on_hyphens=False
    )


def _attributes(docstring: str) -> dict[str, str]:
    listed = inspect.cleandoc(docstring).partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", f"\n{listed}"):
        name, _, text = " ".join(entry.replace("`", "").split()).partition(": ")
        found[name] = text
    return found


def _head(model: type[pydantic.BaseModel]) -> str:
    """The first sentence of a model's docstring."""
    return " ".join(inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0].replace("`", "").split())


def _bounds(metadata: Sequence[Any]) -> str:
    limits = [limit for one in metadata for limit in (one, *getattr(one, "metadata", ()))]
    signs = [
        (sign, getattr(limit, bound)) for limit in limits for bound, sign in _SIGNS.items() if hasattr(limit, bound)
    ]
    return ",".join(f" {sign} {value if isinstance(value, int) else format(value, 'g')}" for sign, value in signs)
