"""The text of ``--help``: the verbs of a program, one verb with its keys, or some keys alone."""

import shutil
import textwrap
from collections.abc import Mapping

from jaxrun.config.config_help import ALL, listing
from jaxrun.config.verbs import Verb
from jaxrun.process.errors import UserError


def width() -> int:
    """Columns of a line of help: as many as the terminal has, 60 to 100."""
    return max(60, min(100, shutil.get_terminal_size((100, 24)).columns))


def overview(program: str, verbs: Mapping[str, Verb], about: str) -> str:
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


def verb_help(program: str, verb: Verb, topic: str) -> str:
    """Returns the help of a verb, or of the keys that a topic names.

    Raises:
        UserError: The verb has no such key.
    """
    more, models = f"{program} {verb.name} --help", verb.models()
    if topic:
        if not models:
            raise UserError(f"help: {verb.name} takes no key=value, so there is no '{topic}'")
        return listing(models, topic.lstrip("-").replace("-", "_"), width=width(), more=more)
    words = [one.name if one.required else f"[{one.name}]" for one in verb.positionals]
    parts = [" ".join(["usage:", program, verb.name, *words, *(["[key=value ...]"] if models else []), "[flags]"])]
    parts += [textwrap.fill(verb.help, width())]
    parts += ["\n".join(_row(one.name, one.help) for one in verb.positionals)] if words else []
    if models:
        parts += ["key=value, --key=value or --key value, as often as you like:"]
        parts[-1] += "\n" + listing(models, "", width=width(), more=more)
    if verb.config is not None:
        parts += [f"{more} {ALL:<3}  lists the keys of sections, too\n{more} KEY  tells of one"]
    parts += ["\n".join(["flags:", _row("-h, --help", "show this help"), _row("--debug", "show where an error arose")])]
    if verb.examples:
        parts += ["examples:\n" + "\n".join(f"  {example}" for example in verb.examples)]
    return "\n\n".join(parts)


def _row(name: str, text: str) -> str:
    return textwrap.fill(text, width(), initial_indent=f"  {name:<12}", subsequent_indent=" " * 14)
