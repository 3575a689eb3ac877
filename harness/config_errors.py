"""Turns what pydantic says about a config into the one line a user needs."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import pydantic
from pydantic_core import ErrorDetails

from harness.errors import nearest

MAX_NAMES = 12
MAX_SHOWN = 70

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
    "dataclass_type": "a section of keys",
    "path_type": "a path",
    "none_required": "null",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "literal_error": "one of {expected}",
    "enum": "one of {expected}",
}


class _Problem:
    """One pydantic error, its location split into the user's own keys and the labels of union branches."""

    def __init__(self, error: ErrorDetails, tree: Any) -> None:
        self.error = error
        self.path: list[str] = []
        self.union_at: int | None = None
        here = tree
        for depth, part in enumerate(error["loc"]):
            last = depth == len(error["loc"]) - 1
            if isinstance(here, list) and isinstance(part, int):
                here = here[part] if part < len(here) else None
            elif isinstance(here, dict) and part in here:
                here = here[part]
            elif not (last and error["type"] == "missing"):
                self.union_at = len(self.path) if self.union_at is None else self.union_at
                continue
            self.path.append(str(part))

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def rank(self) -> int:
        """A misspelt key often makes a second error, the key that is missing: the misspelling comes first."""
        return 0 if self.error["type"] == "extra_forbidden" else 1


def explain(
    error: pydantic.ValidationError,
    model: type[pydantic.BaseModel],
    tree: dict[str, Any],
    source: str,
    overridden: Sequence[str] = (),
) -> str:
    """Returns one line: source, dotted key, what was given, what was expected, the nearest name.

    Args:
        error: What pydantic raised.
        model: The model it checked against.
        tree: The plain data it checked.
        source: The file the data came from.
        overridden: Dotted keys set on the command line; their errors are said to come from there.
    """
    groups = _by_union([_Problem(details, tree) for details in error.errors(include_url=False)])
    groups.sort(key=lambda group: group[0].rank)
    first = groups[0]
    key = first[0].key
    from_command_line = any(key == name or key.startswith(name + ".") for name in overridden)
    others = list(dict.fromkeys(group[0].key for group in groups[1:] if group[0].key != key))
    more = f"; also wrong: {_short_list(others, 4)}" if others else ""
    prefix = f"{'command line' if from_command_line else source}: {key}: " if key else f"{source}: "
    return f"{prefix}{_describe(first, model)}{more}"


def _by_union(problems: list[_Problem]) -> list[list[_Problem]]:
    """Groups the errors that the branches of one union made, and keeps the branch that understood the most."""
    groups: dict[tuple[str, ...], list[_Problem]] = {}
    for index, problem in enumerate(problems):
        key = ("single", str(index)) if problem.union_at is None else ("union", *problem.path[: problem.union_at])
        groups.setdefault(key, []).append(problem)
    chosen = []
    for group in groups.values():
        deepest = max(len(problem.path) for problem in group)
        best = [problem for problem in group if len(problem.path) == deepest]
        shared = [problem for problem in best if problem.path == best[0].path]
        chosen.append(shared)
    return chosen


def _describe(group: list[_Problem], model: type[pydantic.BaseModel]) -> str:
    error = group[0].error
    path = group[0].path
    if error["type"] == "extra_forbidden":
        return _unknown_key(path, error["input"], model)
    if error["type"] == "missing":
        return f"missing, expected {_field_hint(path, model)}"
    if error["type"] in ("value_error", "assertion_error"):
        message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return message if isinstance(error["input"], dict) else f"{message}, given {_shown(error['input'])}"
    expected = list(dict.fromkeys(_expected(problem.error) for problem in group))
    choices = [name for problem in group for name in _choices(problem.error)]
    hint = nearest(error["input"], choices) if isinstance(error["input"], str) else ""
    return f"given {_shown(error['input'])}, expected {' or '.join(expected)}{hint}"


def _unknown_key(path: list[str], given: Any, model: type[pydantic.BaseModel]) -> str:
    name = path[-1]
    models = _models_at(model, path[:-1])
    valid = list(dict.fromkeys(field for candidate in models for field in _field_names(candidate)))
    foreign = {**getattr(model, "foreign_names", {})}
    for candidate in models:
        foreign |= getattr(candidate, "foreign_names", {})
    hint = nearest(name, valid, foreign)
    if name not in foreign:
        elsewhere = [dotted for dotted in _dotted_names(model) if dotted.split(".")[-1] == name]
        hint = f" (did you mean '{elsewhere[0]}'?)" if elsewhere else hint
    return f"unknown key, given {_shown(given)}, expected {_one_of(valid, name)}{hint}"


def _field_hint(path: list[str], model: type[pydantic.BaseModel]) -> str:
    for candidate in _models_at(model, path[:-1]):
        for name, field in candidate.model_fields.items():
            if (field.alias or name) == path[-1] and field.description:
                return f"a value: {field.description}"
    return "a value"


def _expected(error: ErrorDetails) -> str:
    template = _EXPECTED.get(error["type"])
    if template:
        return template.format_map(error.get("ctx", {}))
    message = error["msg"].removeprefix("Input should be ")
    return message[:1].lower() + message[1:]


def _choices(error: ErrorDetails) -> list[str]:
    if error["type"] not in ("literal_error", "enum"):
        return []
    return str(error.get("ctx", {}).get("expected", "")).replace(" or ", ", ").replace("'", "").split(", ")


def _field_names(model: type[pydantic.BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    """Yields the models an annotation mentions, through unions, lists, dicts and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _models_at(model: type[pydantic.BaseModel], path: Sequence[str]) -> list[type[pydantic.BaseModel]]:
    """Returns the models that could hold what stands at `path`; list indices and dict keys pass through."""
    current = [model]
    for part in path:
        below = [
            inner
            for candidate in current
            for name, field in candidate.model_fields.items()
            if (field.alias or name) == part
            for inner in _models_in(field.annotation)
        ]
        current = below or current
    return current


def _dotted_names(model: type[pydantic.BaseModel], above: tuple[type, ...] = ()) -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        names.append(key)
        for inner in _models_in(field.annotation):
            if inner not in above:
                names += [f"{key}.{deeper}" for deeper in _dotted_names(inner, (*above, model))]
    return names


def _one_of(names: list[str], wanted: str) -> str:
    if not names:
        return "no key here"
    if len(names) > MAX_NAMES:
        close = [name for name in names if wanted[:3] and wanted[:3] in name]
        names = list(dict.fromkeys([*close, *names]))
    return f"one of {_short_list(names, MAX_NAMES)}"


def _short_list(names: Sequence[str], limit: int) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f", … ({rest} more)" if rest > 0 else "")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
