"""The options of a script, spelt as the programs' keys are: ``--key=value``, ``--key value`` or ``key=value``."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from jaxrun.process.errors import UserError, nearest

if TYPE_CHECKING:
    import pydantic


class ScriptOptions(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose errors are one line, and whose options may be spelt in all these ways.

    Dashes and underscores are alike. An option of several values takes them with commas, too: ``parts=laws,kernels``.
    Where a config is given, its keys are taken as well, and are ``options.overrides``.
    """

    def __init__(self, about: str | None, config: "type[pydantic.BaseModel] | None" = None) -> None:
        """Describes the script by its docstring."""
        self.known: dict[str, argparse.Action] = {}
        self.config = config
        super().__init__(description=about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def add_argument(self, *names: Any, **told: Any) -> argparse.Action:
        """Adds an option or an argument, as `argparse.ArgumentParser` does."""
        action = super().add_argument(*names, **told)
        self.known |= dict.fromkeys(action.option_strings, action)
        return action

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print.

        Raises:
            UserError: Always.
        """
        raise UserError(message)

    def read(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """Reads the command line, or other `words`.

        Raises:
            UserError: An option that does not exist, or a wrong value.
        """
        own: list[str] = []
        overrides: list[str] = []
        rest = list(sys.argv[1:] if words is None else words)
        while rest:
            word = rest.pop(0)
            flag, equals, _ = word.partition("=")
            name = f"--{flag.removeprefix('--').replace('_', '-')}" if flag.startswith("--") or equals else flag
            if word == "--":
                own += [word, *rest]
                break
            if name in self.known:
                own += self._spelt(name, word, rest)
            elif keyed := self._override(word, rest):
                overrides += keyed
            elif word.startswith("--"):
                raise UserError(f"unknown option '{flag}'{nearest(flag, self.known)}, expected one that --help shows")
            else:
                own.append(word)
        options = (self.parse_args if "--" in own else self.parse_intermixed_args)(own)
        options.overrides = overrides
        return options

    def _spelt(self, name: str, word: str, rest: list[str]) -> list[str]:
        """Returns an option as argparse takes it; of a single value, that may be the first word of the `rest`."""
        action, (_, equals, value) = self.known[name], word.partition("=")
        if action.nargs == 0:
            if not equals:
                value = rest.pop(0) if rest[:1] in (["true"], ["false"]) else "true"
            if value not in ("true", "false"):
                raise UserError(f"{name}: given '{value}', expected true or false")
            opposite = f"--no-{name.removeprefix('--')}"
            return [name] if value == "true" else [opposite] if opposite in self.known else []
        if not equals and rest and not rest[0].startswith("--") and (action.nargs is None or "," in rest[0]):
            equals, value = "=", rest.pop(0)
        if not equals:
            return [name]
        return [f"{name}={value}"] if action.nargs is None else [name, *value.strip("[]").split(",")]

    def _override(self, word: str, rest: list[str]) -> list[str]:
        """Returns a key of the config as ``key=value``, or nothing; its value may be the first word of the `rest`."""
        if self.config is None:
            return []
        from jaxrun.config.flags import read_flag, read_flags

        return [read_flag(word, rest, [self.config])] if word.startswith("--") else read_flags([word], [self.config])[1]
