"""The text of ``--help``: the verbs of a program, one verb with its keys, or some keys alone."""

import argparse
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pydantic

from jaxrun.config.config_help import ALL, listing
from jaxrun.config.config_keys import Ours, keys_of, meant
from jaxrun.process.errors import UserError

if TYPE_CHECKING:
    from jaxrun.config.cli import Verb


def width() -> int:
    """Columns of a line of help: as many as the terminal has, 60 to 100."""
    return max(60, min(100, shutil.get_terminal_size((100, 24)).columns))


def overview(program: str, verbs: Mapping[str, "Verb"], about: str) -> str:
    """Returns all verbs, each with its sentence and an example."""
    margin = max(len(name) for name in verbs)
    lines = [f"usage: {program} VERB [arguments] [key=value ...]", ""]
    lines += [*textwrap.wrap(about, width()), ""] if about else []
    lines += ["verbs:"]
    for name, verb in verbs.items():
        indent = " " * (margin + 4)
        lines += textwrap.wrap(f"  {name:<{margin}}  {verb.help}", width(), subsequent_indent=indent)
    examples = [verb.examples[0] for verb in verbs.values() if verb.examples]
    if examples:
        lines += ["", "examples:", *(f"  {example}" for example in examples)]
    lines += ["", f"{program} VERB --help tells more about one verb; {program} --version shows the version."]
    return "\n".join(lines)


def verb_help(program: str, verb: "Verb", parser: argparse.ArgumentParser, topic: str) -> str:
    """Returns the help of a verb, or of the keys that a topic names.

    Raises:
        UserError: The verb has no such key.
    """
    more = f"{program} {verb.name} --help"
    models = models_of(verb)
    if topic:
        if not models:
            raise UserError(f"help: {verb.name} takes no key=value, so there is no '{topic}'")
        return listing(models, topic, width=width(), more=more)
    parts = [parser.format_help().rstrip()]
    if models:
        parts += [f"key=value, as often as you like{'; the keys of the config are' if verb.config else ''}:"]
        parts[-1] += "\n" + listing(models, "", width=width(), more=more)
    if verb.config is not None:
        parts += [f"{more} {ALL:<3}  lists the keys of sections, too\n{more} KEY  tells of one"]
    if verb.examples:
        parts += ["examples:\n" + "\n".join(f"  {example}" for example in verb.examples)]
    return "\n\n".join(parts)


def models_of(verb: "Verb") -> Sequence[type[pydantic.BaseModel]]:
    """Returns the models of all keys that a verb takes as ``key=value``."""
    config = [verb.config()] if verb.config is not None else []
    return [*config, *([verb.settings] if verb.settings is not None else [])]


def as_setting(verb: "Verb", flag: str, value: str) -> str:
    """Returns how what was given as a flag is written as ``key=value``; empty where no key is meant by it.

    Args:
        verb: The verb that takes the key.
        flag: The unknown flag, such as ``--learning-rate``.
        value: What was given with it, maybe nothing.
    """
    name = flag.lstrip("-").replace("-", "_")
    for model in models_of(verb):
        fields = {key.dotted: key.field for key in keys_of(model)}
        *path, last = name.split(".")
        [found, *others] = [Ours(name)] if name in fields else meant(last, model, path) or [Ours()]
        if found.key in fields and not others:
            shown = value or ("true" if fields[found.key].annotation is bool else "...")
            return f"{found.key}={shown}" + (f" ({found.note})" if found.note else "")
    return ""
