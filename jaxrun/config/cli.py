"""The command line of every program: ``program verb [positional] key=value``, one-line errors, exit codes.

Exit codes: 0 success, 1 an unexpected failure, 2 wrong usage, wrong input or more than memory holds, 130 interrupted.
"""

import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

from jaxrun.config.cli_help import overview, verb_help
from jaxrun.config.flags import read_flags
from jaxrun.config.verbs import Args, Verb
from jaxrun.files.atomic import user_line
from jaxrun.process.errors import Failure, UserError, nearest
from jaxrun.process.startup import INTERRUPTED, is_interrupt
from jaxrun.terminal.printable import one_line

DISTRIBUTION = "altojax"
"""The installed distribution, which has all programs."""


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
    debug = "--debug" in _flags(arguments)
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
            return _fail(program, known, 2, debug)
        said = str(error) or "no message"
        hint = "" if debug else " (run again with --debug for the traceback)"
        return _fail(program, f"{type(error).__name__}: {textwrap.shorten(said, 400)}{hint}", 1, debug)


def _dispatch(program: str, verbs: Mapping[str, Verb], arguments: list[str], about: str) -> int:
    flags = [word for word in _flags(arguments) if word != "--debug"]
    words = flags + arguments[len(_flags(arguments)) :]
    if broken := next((word for word in words if any("\ud800" <= letter <= "\udfff" for letter in word)), None):
        raise UserError(f"given '{broken}', which is not UTF-8, expected text")
    if not words:
        raise UserError(f"no verb given, expected one of {', '.join(verbs)}; see {program} --help")
    if words[0] in ("-h", "--help", "help"):
        if words[1:2] and words[1] in verbs:
            print(verb_help(program, verbs[words[1]], "".join(words[2:3])))
        else:
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
    asked = next((index for index, word in enumerate(flags) if word in ("-h", "--help")), None)
    if asked is not None:
        print(verb_help(program, verb, "".join(flags[asked + 1 : asked + 2])))
        return 0
    try:
        args = _parse(verb, words[1:])
    except UserError as error:
        raise UserError(f"{verb.name}: {error}; see {program} {verb.name} --help") from None
    return verb.run(args)


def _parse(verb: Verb, words: list[str]) -> Args:
    names, models = [positional.name for positional in verb.positionals], verb.models()
    every = [*reversed(models), *(one() for one in verb.others)]  # settings before keys of a config
    plain, keyed = read_flags(words, every, names)
    values: dict[str, str | None] = dict.fromkeys(names)
    overrides = []
    for word in keyed:
        key, _, value = word.partition("=")
        if key in values:
            values[key] = value
        else:
            overrides.append(word)
    free = [name for name in names if values[name] is None]
    if len(plain) > len(free):
        expected = "key=value" if models else "nothing more"
        raise UserError(f"unexpected argument '{plain[len(free)]}', expected {expected}")
    values |= zip(free, plain, strict=False)
    for positional in verb.positionals:
        if positional.required and values[positional.name] is None:
            raise UserError(f"no {positional.name} given, expected {positional.help}")
    return Args(values, tuple(overrides))


def _flags(words: Sequence[str]) -> Sequence[str]:
    """The words among which flags may be: those before ``--``."""
    return words[: words.index("--")] if "--" in words else words


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
