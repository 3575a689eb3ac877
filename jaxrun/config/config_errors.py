"""Turns what pydantic says about a config into the one line a user needs."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pydantic
from pydantic_core import ErrorDetails

from jaxrun.config.config_keys import did_you_mean, field_names, meant, models_at
from jaxrun.process.errors import nearest

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
    "string_pattern_mismatch": "text that matches {pattern}",
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


class Overridden(NamedTuple):
    """A config's data before some of its keys were overridden.

    Attributes:
        before: The data.
        by: What messages call what has overridden them.
    """

    before: dict[str, Any]
    by: str = "command line"

    def made(self, error: ErrorDetails, model: type[pydantic.BaseModel]) -> bool:
        """Whether an error is not there without what was overridden."""
        try:
            model.model_validate_json(json.dumps(self.before))
        except pydantic.ValidationError as found:
            return _told(error) not in map(_told, found.errors(include_url=False))
        return True


def _told(error: ErrorDetails) -> tuple[Any, ...]:
    given = error["input"]
    return error["loc"], error["msg"], "" if isinstance(given, dict | list) else repr(given)


def explain(
    error: pydantic.ValidationError,
    model: type[pydantic.BaseModel],
    tree: dict[str, Any],
    source: str,
    overridden: Overridden | None = None,
) -> str:
    """Returns one line: source, dotted key, what was given, what was expected, the nearest name.

    Args:
        error: What pydantic raised.
        model: The model it checked against.
        tree: The plain data it checked.
        source: The file the data came from.
        overridden: The data before keys of it were overridden: what is wrong since is not blamed on `source`.
    """
    groups = _by_union([_Problem(details, tree) for details in error.errors(include_url=False)])
    groups.sort(key=lambda group: group[0].rank)
    first = groups[0]
    key = first[0].key
    others = list(dict.fromkeys(_briefly(group[0], model) for group in groups[1:] if group[0].key != key))
    more = f"; also wrong: {_short_list(others, 4)}" if others else ""
    where = overridden.by if overridden is not None and overridden.made(first[0].error, model) else source
    return f"{where}: {f'{key}: ' if key else ''}{_describe(first, model)}{more}"


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
    if expected == [_EXPECTED["model_type"]]:
        keys = dict.fromkeys(field for section in models_at(model, path) for field in field_names(section))
        expected = [f"{expected[0]}: {_short_list(list(keys), MAX_NAMES)}"]
    choices = [name for problem in group for name in _choices(problem.error)]
    hint = _meant_value(error["input"], choices, models_at(model, path[:-1])) if isinstance(error["input"], str) else ""
    return f"given {_shown(error['input'])}, expected {' or '.join(expected)}{hint}"


def _briefly(problem: _Problem, model: type[pydantic.BaseModel]) -> str:
    """The key that is wrong, too, and in brackets the one that it surely stands for."""
    unknown = problem.error["type"] == "extra_forbidden"
    found = meant(problem.path[-1], model, problem.path[:-1]) if unknown else []
    return f"{problem.key} ({found[0].key})" if len(found) == 1 and found[0].key else problem.key


def _meant_value(given: str, choices: list[str], sections: Sequence[type[pydantic.BaseModel]]) -> str:
    for section in sections:
        if (ours := getattr(section, "foreign_values", {}).get(given.lower())) in choices:
            return f" (did you mean '{ours}'?)"
    return nearest(given, choices)


def _unknown_key(path: list[str], given: Any, model: type[pydantic.BaseModel]) -> str:
    name = path[-1]
    valid = list(dict.fromkeys(field for section in models_at(model, path[:-1]) for field in field_names(section)))
    hint = did_you_mean(meant(name, model, path[:-1], given))
    return f"unknown key, given {_shown(given)}, expected {_one_of(valid, name)}{hint}"


def _field_hint(path: list[str], model: type[pydantic.BaseModel]) -> str:
    for candidate in models_at(model, path[:-1]):
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
