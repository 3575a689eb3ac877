"""The verbs of a program: what follows each on the command line, and which keys it takes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pydantic

Model = type[pydantic.BaseModel]


def later(place: str) -> Callable[[], Model]:
    """Returns what imports a model, named as ``package.module:Name``, when it is asked for it."""
    return lambda: _imported(place)


@dataclass(frozen=True)
class Args:
    """The words that the user typed after the verb.

    Attributes:
        values: Positionals by name (``args["config"]``), None where one is not given.
        overrides: The keys as ``key=value``, however they were written, in order.
    """

    values: Mapping[str, Any]
    overrides: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True)
class Positional:
    """An argument by its place, or by its name as ``--NAME VALUE``; those that are `required` come first."""

    name: str
    help: str
    required: bool = True


@dataclass(frozen=True)
class Verb:
    """One thing a program can do.

    Attributes:
        name: What the user types.
        help: One sentence.
        run: Does it and returns the exit code.
        positionals: What comes after the verb.
        config: Gives the model of the config that it reads; imported only when asked.
        others: Give the models of other configs that it may read, whose help is that of other verbs.
        settings: The model of keys of its own.
        examples: Whole command lines for ``--help``.
    """

    name: str
    help: str
    run: Callable[[Args], int]
    positionals: Sequence[Positional] = ()
    config: Callable[[], Model] | None = None
    others: Sequence[Callable[[], Model]] = ()
    settings: Model | None = None
    examples: Sequence[str] = ()

    def models(self) -> list[Model]:
        """Returns the models of the keys that its help lists."""
        return [*([self.config()] if self.config else []), *([self.settings] if self.settings else [])]


class LazyVerbs(Mapping[str, Verb]):
    """The verbs of a program by name, each imported, with what it needs, when it is first asked for.

    Args:
        places: Where each is, as ``package.module:NAME``.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> Verb:
        verb: Verb = _imported(self._places[name])
        return verb

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
