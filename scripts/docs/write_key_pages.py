"""Writes the pages of every key that the programs take, out of the models that read them.

    python scripts/docs/write_key_pages.py

Makes docs/reference/altojax-keys.md and docs/reference/twistjax-keys.md.
"""

from jaxrun.process.script import run_script

import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pydantic
from tool_names import TOOLS

from altojax import cli as altojax_cli
from jaxrun.config.config_help import Told, told
from jaxrun.config.config_keys import Ours, field_names, keys_of
from jaxrun.config.verbs import Verb
from jaxrun.files.atomic import write_atomic
from jaxrun.plots.markdown import table
from twistjax import cli as twistjax_cli

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
PROGRAMS: Mapping[str, Mapping[str, Verb]] = {"altojax": altojax_cli.VERBS, "twistjax": twistjax_cli.VERBS}
COLUMNS = ("key", "type and range", "default", "what it is", "elsewhere")
INTRODUCTION = """\
# Keys of {program}

Every key of a config and of the command line: `{program} VERB CONFIG key=value`, with dots for sections as in the
headings below; `{program} VERB --help KEY` says the same. `0` is the first item of a list, `NAME` a name that you give.
*Elsewhere* is what transformers, TRL (which has the names of transformers, too), PEFT, LLaMA-Factory, axolotl, unsloth,
Optuna and Ray Tune call it, and other names that are understood; [coming from another tool](../coming-from.md) has how
they differ.

Written by `make keys` from the code.
"""

Model = type[pydantic.BaseModel]


class Place(NamedTuple):
    """Where keys stand.

    Attributes:
        verbs: The verbs that take them.
        dotted: The section, as it is written on the command line; empty at the top.
    """

    verbs: tuple[str, ...]
    dotted: str

    @property
    def title(self) -> str:
        """The heading of the place."""
        return f"{self.verbs[0]}: {self.dotted}" if self.dotted else ", ".join(self.verbs)

    @property
    def anchor(self) -> str:
        """What a link to the heading names."""
        return re.sub(r"[^\w -]", "", self.title.lower()).replace(" ", "-")


def page(program: str) -> str:
    """Returns the page of a program: a heading for each section, where it stands first."""
    verbs = PROGRAMS[program]
    taken: dict[Model, list[str]] = {}
    for name, verb in verbs.items():
        for model in verb.models():
            taken.setdefault(model, []).append(name)
    places: dict[Model, Place] = {}
    for model, names in taken.items():
        for key in keys_of(model):
            places.setdefault(key.section, Place(tuple(names), key.dotted.rpartition(".")[0]))
    names_elsewhere = _elsewhere(list(taken))
    headings: dict[Place, list[Model]] = {}
    for section, place in places.items():
        headings.setdefault(place, []).append(section)
    parts = [INTRODUCTION.format(program=program)]
    for place, sections in headings.items():
        parts.append(f"{'###' if place.dotted else '##'} {place.title}\n")
        if not place.dotted:
            parts += [*(f"- `{program} {name}`: {verbs[name].help}" for name in place.verbs), ""]
        for section in sections:
            base = next((one for one in section.__mro__[1:] if one in places), None)
            about = [_head(section)] if place.dotted else []
            about += [f"The keys of [{places[base].title}](#{places[base].anchor}), and:"] if base else []
            rows = _rows(section, places, names_elsewhere.get(section, {}), set(field_names(base)) if base else set())
            parts += ["\n\n".join([*about, table(COLUMNS, list(rows))]), ""]
    return "\n".join(parts)


def _rows(
    section: Model, places: Mapping[Model, Place], names: Mapping[str, Sequence[str]], known: Collection[str]
) -> Iterator[list[str]]:
    for key, entry in told(section).items():
        if key in known:
            continue
        kind = entry.kind
        for _, model in entry.sections[:1]:
            kind = re.sub(r"section(?! of)|\{.*?\}", rf"[\g<0>](#{places[model].anchor})", kind, count=1)
        own = [key] if key in TOOLS else []
        yield [f"`{key}`", kind, _default(entry), entry.meaning, _called([*own, *names.get(key, ())])]


def _default(entry: Told) -> str:
    if entry.required:
        return "must be given"
    return f"`{entry.default}`" if entry.default else ""


def _called(names: Sequence[str]) -> str:
    """Names with the tools that use them, and at last those of no tool in particular."""
    by_tools: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        by_tools.setdefault(TOOLS.get(name, ()), []).append(f"`{name}`")
    in_order = sorted(by_tools.items(), key=lambda one: not one[0])
    return "; ".join(", ".join(alike) + (f" ({', '.join(tools)})" if tools else "") for tools, alike in in_order)


def _elsewhere(models: Sequence[Model]) -> dict[Model, dict[str, list[str]]]:
    """Returns section -> key -> names that other tools give to it."""
    found: dict[Model, dict[str, list[str]]] = {}
    for model in models:
        keys = {key.dotted: key for key in keys_of(model)}
        for place, section in {(key.dotted.rpartition(".")[0], key.section) for key in keys.values()}:
            for name, meant in getattr(section, "foreign_names", {}).items():
                ours = Ours(meant) if isinstance(meant, str) else meant
                key = keys.get(f"{place}.{ours.key}" if place else ours.key)
                if key is not None:
                    names = found.setdefault(key.section, {}).setdefault(key.name, [])
                    names += [] if name in names else [name]
    return {section: {key: sorted(names) for key, names in of.items()} for section, of in found.items()}


def _head(model: Model) -> str:
    """The first paragraph of a model's docstring."""
    return " ".join(inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0].split())


def main() -> None:
    """Writes both pages."""
    for program in PROGRAMS:
        write_atomic(FOLDER / f"{program}-keys.md", page(program))


if __name__ == "__main__":
    sys.exit(run_script(main))
