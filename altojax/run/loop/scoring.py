"""Scores of answers by code of the user's: a Python callable, or a command that reads JSON lines.

It runs only where the run's own config, or the caller from Python, names it.
"""

import contextlib
import importlib
import json
import math
import numbers
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from altojax.config.tune_config import TuneConfig
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import LOOK_S, StopAsked, stop_if

ScoreAnswer = Callable[[str, str, str], float]
"""(prompt, answer, reference) -> a number from 0 to 1."""
_LINE_BYTES = 256
"""Most bytes of a line that a command prints."""


class TrialAnswer(NamedTuple):
    """An answer to score.

    Attributes:
        prompt: The row's own prompt; of a conversation, what the user said last.
        answer: What was generated.
        reference: The row's own answer.
    """

    prompt: str
    answer: str
    reference: str


Grade = Callable[[Sequence[TrialAnswer], StopAsked | None], list[float]]
"""(answers, what asks it to stop) -> the score of each. Raises Stopped where it was asked to."""


def grade_of(config: TuneConfig, given: ScoreAnswer | None) -> Grade | None:
    """Returns what scores the answers of a run, None where nothing of the user's does.

    Args:
        config: The run.
        given: The caller's function, from Python.

    Raises:
        UserError: There is none although scores decide, or several, or it cannot be imported.
    """
    spec = config.metric
    if config.select_by != "score":
        if given is not None:
            raise UserError(f"score: a function was given, but select_by is {config.select_by}, expected score")
        return None
    if given is not None and spec.code is not None:
        raise UserError(f"score: a function was given beside metric.{spec.code}, expected one of them")
    if given is not None:
        if not callable(given):
            raise UserError(f"score: given {given!r:.70}, expected a function of prompt, answer and reference")
        return ByPython(given, f"score: {getattr(given, '__qualname__', type(given).__name__)}", spec.timeout_s)
    spec.check_code()
    if spec.python is not None:
        return ByPython(imported(spec.python), f"metric.python: {spec.python}", spec.timeout_s)
    assert spec.command is not None
    return ByCommand(spec.command, spec.timeout_s)


def imported(path: str) -> ScoreAnswer:
    """Imports ``module:function``; modules in the current folder are found behind those that are installed.

    Raises:
        UserError: There is none.
    """
    module, _, name = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"metric.python: module '{module}' cannot be imported: {_brief(error)}; expected one that is installed, or "
            f"lies in {here}"
        ) from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UserError(
            f"metric.python: {sys.modules[module].__file__ or module} has no function '{name}', expected one of "
            "prompt, answer and reference"
        )
    return found


@dataclass(frozen=True)
class ByPython:
    """Scores answers by a function, in a thread of its own.

    Attributes:
        function: The function.
        name: What to call it in messages.
        timeout_s: Seconds that all answers of an evaluation may take.
    """

    function: ScoreAnswer
    name: str
    timeout_s: float

    def __call__(self, answers: Sequence[TrialAnswer], asked: StopAsked | None = None) -> list[float]:
        """Returns the score of each answer.

        Raises:
            UserError: The function raises, returns no number from 0 to 1, or takes too long.
            Stopped: It was asked to.
        """
        future: Future[list[float]] = Future()
        threading.Thread(target=self._score, args=(answers, future), daemon=True).start()
        until = time.monotonic() + self.timeout_s
        try:
            while not wait([future], timeout=LOOK_S).done:
                stop_if(asked)
                if time.monotonic() > until:
                    raise UserError(_too_slow(self.name, len(answers), self.timeout_s))
        finally:
            future.cancel()
        return future.result()

    def _score(self, answers: Sequence[TrialAnswer], future: Future[list[float]]) -> None:
        with contextlib.suppress(InvalidStateError):  # nobody waits any more
            try:
                future.set_result([self._one(one) for one in answers if not future.cancelled()])
            except UserError as error:
                future.set_exception(error)

    def _one(self, answer: TrialAnswer) -> float:
        try:
            value = self.function(*answer)
        except (Exception, SystemExit) as error:
            raise UserError(f"{self.name} raised {_brief(error)}; it was given {_shown(answer)}") from error
        with contextlib.suppress(TypeError, ValueError):
            if isinstance(value, numbers.Real) or hasattr(value, "item"):
                score = float(value)
                if 0 <= score <= 1:
                    return score
        raise UserError(
            f"{self.name} returned {value!r:.70}, expected a number from 0 to 1; it was given {_shown(answer)}"
        )


@dataclass(frozen=True)
class ByCommand:
    """Scores answers by a command, which is run anew for each evaluation.

    Attributes:
        command: The program and its arguments; no shell reads them.
        timeout_s: Seconds that it may take.
    """

    command: Sequence[str]
    timeout_s: float

    def __call__(self, answers: Sequence[TrialAnswer], asked: StopAsked | None = None) -> list[float]:
        """Returns the score of each answer.

        Raises:
            UserError: The command cannot be run, fails, takes too long, or prints something else.
            Stopped: It was asked to.
        """
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as printed,
            tempfile.TemporaryFile() as said,
        ):
            given.writelines(json.dumps(one._asdict()).encode() + b"\n" for one in answers)
            given.seek(0)
            code = self._run(given, printed, said, len(answers), asked)
            if code:
                said.seek(max(said.tell() - 4096, 0))
                lines = said.read().decode("utf-8", "replace").split("\n")
                why = next((line.strip() for line in reversed(lines) if line.strip()), "")
                how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
                raise UserError(f"{self._name} {how}{': ' * bool(why)}{why:.200}")
            printed.seek(0)
            return self._read(printed.read(_LINE_BYTES * (len(answers) + 1)), len(answers))

    def _run(self, given: IO[bytes], printed: IO[bytes], said: IO[bytes], count: int, asked: StopAsked | None) -> int:
        try:
            # A group of its own: Ctrl-C in a terminal asks the run to stop, not the command.
            process = subprocess.Popen(self.command, stdin=given, stdout=printed, stderr=said, process_group=0)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"{self._name}: {why}, expected a program that can be run") from error
        until = time.monotonic() + self.timeout_s
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=LOOK_S)
                    said.seek(0, os.SEEK_END)
                    return code
                stop_if(asked)
                if time.monotonic() > until:
                    raise UserError(_too_slow(self._name, count, self.timeout_s))
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _read(self, printed: bytes, count: int) -> list[float]:
        lines = printed.decode("utf-8", "replace").splitlines()
        if len(lines) != count:
            raise UserError(
                f"{self._name} printed {len(lines):,} lines for {count:,} answers, expected a number from 0 to 1 for "
                "each"
            )
        return [self._number(line, place) for place, line in enumerate(lines, 1)]

    def _number(self, line: str, place: int) -> float:
        with contextlib.suppress(ValueError):
            if 0 <= (score := float(line)) <= 1 and math.isfinite(score):
                return score
        raise UserError(f"{self._name} printed {line.strip()!r:.70} in line {place}, expected a number from 0 to 1")

    @property
    def _name(self) -> str:
        return f"metric.command: {' '.join(self.command):.80}"


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' * bool(text)}{text:.200}"


def _shown(answer: TrialAnswer) -> str:
    return f"the answer {answer.answer!r:.60} and the reference {answer.reference!r:.60}"


def _too_slow(name: str, count: int, timeout_s: float) -> str:
    expected = "expected a larger metric.timeout_s"
    return f"{name} has not scored {count:,} answers within {timeout_s:g} s, {expected}"
