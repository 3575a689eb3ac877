"""The command line of every program: ``program verb [positional] key=value``, one-line errors, exit codes.

Exit codes: 0 success, 1 an unexpected failure, 2 wrong usage or wrong input, 130 interrupted.
"""

import argparse
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, NoReturn

import pydantic

from jaxrun.config.cli_help import as_setting, overview, verb_help
from jaxrun.files.atomic import user_line
from jaxrun.process.errors import Failure, UserError, misspelt, nearest
from jaxrun.process.startup import INTERRUPTED, is_interrupt
from jaxrun.terminal.printable import one_line

DISTRIBUTION = "altojax"
"""What is installed: one distribution has all programs."""
_OVERRIDE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*=")


@dataclass(frozen=True)
class Args:
    """What the user typed after the verb.

    Attributes:
        values: Positionals and options by name (``args["config"]``).
        overrides: The ``key=value`` arguments, in order.
        debug: Whether ``--debug`` was given.
        argv: Everything after the program's name, for the record of a run.
    """

    values: Mapping[str, Any]
    overrides: tuple[str, ...] = ()
    debug: bool = False
    argv: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True)
class Positional:
    """One positional argument: `required` ones come first; a `many` one comes last and gives a list."""

    name: str
    help: str
    required: bool = True
    many: bool = False


@dataclass(frozen=True)
class Option:
    """One ``--flag`` (kind bool) or ``--option VALUE`` (kind str, int or float)."""

    name: str
    help: str
    kind: type = bool
    default: Any = None
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Verb:
    """One thing a program can do.

    Attributes:
        name: What the user types.
        help: One sentence.
        run: Does it and returns the exit code.
        positionals: What comes after the verb.
        options: Its flags, beside ``--help`` and ``--debug``.
        overrides: Whether ``key=value`` arguments are taken.
        config: Gives the model of the config that it reads, whose keys they may be; imported only when asked.
        settings: The model of keys of its own.
        examples: Whole command lines for ``--help``.
    """

    name: str
    help: str
    run: Callable[[Args], int]
    positionals: Sequence[Positional] = ()
    options: Sequence[Option] = ()
    overrides: bool = False
    config: Callable[[], type[pydantic.BaseModel]] | None = None
    settings: type[pydantic.BaseModel] | None = None
    examples: Sequence[str] = field(default=())


class _Parser(argparse.ArgumentParser):
    """Raises `UserError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(
    program: str,
    verbs: Mapping[str, Verb],
    argv: Sequence[str] | None = None,
    *,
    about: str = "",
    explain: Callable[[Exception], str | None] = lambda _: None,
) -> int:
    """Runs one verb and returns the exit code; what a verb raises becomes one line on stderr.

    Args:
        program: The program's name.
        verbs: The verbs by name.
        argv: The arguments after the program's name; ``sys.argv[1:]`` by default.
        about: One sentence for ``--help``.
        explain: Says what an unexpected failure means to a user, where it knows; else None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        code = _dispatch(program, verbs, arguments, about)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _fail(program, str(error), 2, debug)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", INTERRUPTED, debug)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; the interpreter must not fail again as it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # the last resort of the program: one line, and the traceback on demand
        if is_interrupt(error):
            return _fail(program, "interrupted", INTERRUPTED, debug)
        if isinstance(error, OSError) and (line := user_line(error)) is not None:
            return _fail(program, line, 2, debug)
        if (known := str(error) if isinstance(error, Failure) else explain(error)) is not None:
            return _fail(program, known, 1, debug)
        said = str(error) or "no message"
        hint = "" if debug else " (run again with --debug for the traceback)"
        return _fail(program, f"{type(error).__name__}: {textwrap.shorten(said, 400)}{hint}", 1, debug)


def _dispatch(program: str, verbs: Mapping[str, Verb], arguments: list[str], about: str) -> int:
    words = [word for word in arguments if word != "--debug"]
    if broken := next((word for word in words if any("\ud800" <= letter <= "\udfff" for letter in word)), None):
        raise UserError(f"given '{broken}', which is not UTF-8, expected text")
    if not words:
        raise UserError(f"no verb given, expected one of {', '.join(verbs)}; see {program} --help")
    if words[0] == "help" and words[1:2] and words[1] in verbs:
        words = [words[1], "--help", *words[2:]]
    if words[0] in ("-h", "--help", "help"):
        print(overview(program, verbs, about))
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"{program} {_version()}")
        return 0
    if words[0].startswith("-"):
        raise UserError(f"unknown flag '{words[0]}', expected a verb: {', '.join(verbs)}")
    if words[0] not in verbs:
        raise UserError(f"unknown verb '{words[0]}', expected one of {', '.join(verbs)}{nearest(words[0], verbs)}")
    verb = verbs[words[0]]
    parser = _parser_of(program, verb)
    asked = next((index for index, word in enumerate(words) if word in ("-h", "--help")), None)
    if asked is not None:
        print(verb_help(program, verb, parser, "".join(words[asked + 1 : asked + 2])))
        return 0
    return verb.run(_parse(program, verb, parser, words[1:], debug="--debug" in arguments, argv=tuple(arguments)))


def _parse(
    program: str,
    verb: Verb,
    parser: _Parser,
    words: list[str],
    *,
    debug: bool,
    argv: tuple[str, ...],
) -> Args:
    flags = [f"--{option.name}" for option in verb.options]
    _check_flags(program, verb, words, flags)
    overrides: list[str] = []
    if verb.overrides:
        after_option = {
            index + 1
            for index, word in enumerate(words)
            if word in flags and _takes_value(verb, word.removeprefix("--"))
        }
        overrides = [word for index, word in enumerate(words) if index not in after_option and _is_override(word)]
        words = [word for index, word in enumerate(words) if index in after_option or not _is_override(word)]
    known, extra = parser.parse_known_args(words)
    values = {name: value for name, value in vars(known).items() if name not in ("help", "debug")}
    if extra:
        expected = "key=value" if verb.overrides else "nothing more"
        raise UserError(f"{verb.name}: unexpected argument '{extra[0]}', expected {expected}; {_help(program, verb)}")
    for positional in verb.positionals:
        if positional.required and values[positional.name] in (None, []):
            raise UserError(
                f"{verb.name}: no {positional.name} given, expected {positional.help}; {_help(program, verb)}"
            )
    return Args(values=values, overrides=tuple(overrides), debug=debug, argv=argv)


def _check_flags(program: str, verb: Verb, words: list[str], flags: list[str]) -> None:
    for index, word in enumerate(words):
        if not word.startswith("-") or word == "-" or _is_number(word):
            continue
        before = words[index - 1].removeprefix("--") if index else ""
        if _takes_value(verb, before):
            continue
        name = word.partition("=")[0]
        if name in flags:
            continue
        valid = [*flags, "--help", "--debug"]
        if not verb.overrides or misspelt(name, valid):
            hint = nearest(name, valid)
            raise UserError(f"{verb.name}: unknown flag '{name}', expected one of {', '.join(valid)}{hint}")
        following = words[index + 1] if index + 1 < len(words) and words[index + 1][0] not in "-" else ""
        setting = as_setting(verb, name, word.partition("=")[2] or ("" if _is_override(following) else following))
        such = f"key=value without dashes: {setting}" if setting else "key=value without dashes"
        raise UserError(f"{verb.name}: unknown flag '{name}', expected {such}; {_help(program, verb)}")


def _parser_of(program: str, verb: Verb) -> _Parser:
    parser = _Parser(
        prog=f"{program} {verb.name}",
        usage=_usage(program, verb),
        description=verb.help,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    for positional in verb.positionals:
        parser.add_argument(positional.name, help=positional.help, nargs="*" if positional.many else "?")
    for option in verb.options:
        if option.kind is bool:
            parser.add_argument(f"--{option.name}", dest=option.name, action="store_true", help=option.help)
        else:
            parser.add_argument(
                f"--{option.name}",
                dest=option.name,
                help=option.help,
                type=option.kind,
                default=option.default,
                choices=option.choices,
                metavar=option.kind.__name__.upper(),
            )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    return parser


def _usage(program: str, verb: Verb) -> str:
    parts = [program, verb.name]
    for positional in verb.positionals:
        shown = f"{positional.name} ..." if positional.many else positional.name
        parts.append(f"{shown}" if positional.required else f"[{shown}]")
    parts += ["[key=value ...]"] if verb.overrides else []
    parts += ["[options]"]
    return " ".join(parts)


def _help(program: str, verb: Verb) -> str:
    return f"see {program} {verb.name} --help"


def _takes_value(verb: Verb, name: str) -> bool:
    return any(option.name == name and option.kind is not bool for option in verb.options)


def _is_override(word: str) -> bool:
    return _OVERRIDE.match(word) is not None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _fail(program: str, message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    message = one_line(message)
    print(f"{program}: error: {message}" if code != INTERRUPTED else f"{program}: {message}", file=sys.stderr)
    return code
