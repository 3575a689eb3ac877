"""Records of a journal: events (decisions), points (measurements) and checkpoints."""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from jaxrun.process.errors import UserError

DAMAGE = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors of readers at a record that is not as it was written."""
RECORD_BYTES = 2**25
"""Most bytes of a record for who only watches a run of others; 30 times as much is taken by its values in memory."""


PREFERENCES = (
    *(f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")),
    *(f"logps/{name}" for name in ("chosen", "rejected")),
)
"""Splits of points that are of validation pairs, by the names that TRL gives them."""
KL = "kl"
"""Likewise of answers alone: how far a trial is from its reference, in nats, by answers to other prompts."""
NO_LOSSES = frozenset(
    f"{whose}{metric}{part}"
    for whose in ("", "average_")
    for metric in ("accuracy", "exact_match", "score", "rewards/accuracies")
    for part in ("", "_error")
) | {*PREFERENCES, KL}
"""Splits of points whose number is no loss, but what they are called."""


@dataclass(frozen=True)
class Event:
    """Something that was decided or happened.

    Attributes:
        kind: What, e.g. ``'start'`` or ``'end'``.
        task: The task's name; None for the run as a whole.
        trial: The trial's number or name within the task, or None.
        payload: JSON data. Only keys that end in ``_s`` (seconds) may depend on the clock.
        tick: When it was appended; filled in by the journal.
        wall_s: Seconds since the epoch when it was appended; filled in by the journal where it is 0.
    """

    kind: str
    task: str | None = None
    trial: int | str | None = None
    payload: dict[str, Any] = field(default_factory=dict)
    tick: int = field(default=-1, compare=False)
    wall_s: float = field(default=0.0, compare=False)

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Self:
        """Returns the event of a row: kind, task, trial, payload as JSON, tick, seconds.

        Raises:
            ValueError: The payload is no JSON object.
        """
        kind, task, trial, text, tick, wall_s = row
        payload = json.loads(text)
        if not isinstance(payload, dict):
            raise ValueError(f"a payload is a {type(payload).__name__}, expected an object")
        return cls(str(kind), None if task is None else str(task), trial, payload, int(tick), float(wall_s))

    def decision(self) -> str:
        """Returns one canonical line without anything that depends on the clock."""
        return json.dumps(
            [self.tick, self.kind, self.task, self.trial, _without_clock(self.payload)],
            sort_keys=True,
            separators=(",", ":"),
        )


@dataclass(frozen=True)
class Point:
    """One loss of one trial, or another number that was measured of it.

    Attributes:
        task: The task's name.
        trial: The trial's number or name within the task; None for the base model.
        step: Optimizer steps done.
        samples: Training samples seen.
        tokens: Training tokens seen.
        split: ``'train'``, ``'validation'`` or ``'base'``; ``'average'`` and the like for the loss of averaged weights;
            or one of `NO_LOSSES`.
        loss: Mean loss in nats per target token, or what else was measured; it need not be finite.
        lr: The learning rate at that step, or None.
        time_s: Seconds since the run began, resumptions included, or None.
        grad_norm: Norm of the gradient of the newest optimizer step, before clipping; None where it is not known.
    """

    task: str | None
    trial: int | str | None
    step: int
    samples: int
    tokens: int
    split: str
    loss: float | None
    lr: float | None = None
    time_s: float | None = None
    grad_norm: float | None = None

    @property
    def name(self) -> str:
        """Name of its number, such as ``validation_loss``."""
        return self.split if self.split in NO_LOSSES else f"{self.split}_loss"

    def row(self) -> tuple[Any, ...]:
        """Returns the fields as SQLite can bind them; it would store a NaN as NULL, so that becomes ``'nan'``."""
        loss = None if self.loss is None else float(self.loss)
        return (
            self.task,
            scalar(self.trial),
            int(self.step),
            int(self.samples),
            int(self.tokens),
            self.split,
            "nan" if loss is not None and math.isnan(loss) else loss,
            None if self.lr is None else float(self.lr),
            None if self.time_s is None else float(self.time_s),
            None if self.grad_norm is None else float(self.grad_norm),
        )

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Self:
        """Returns the point that `row` made."""
        task, trial, step, samples, tokens, split, *numbers = row
        known = [None if value is None else float(value) for value in numbers]
        return cls(task, trial, int(step), int(samples), int(tokens), str(split), *known)


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        tick: When it was taken.
        manifest: The caller's own JSON data.
    """

    tick: int
    manifest: dict[str, Any]


@contextlib.contextmanager
def record_errors(path: Path) -> Iterator[None]:
    """Turns what readers raise at records that are not as they were written into one line about `path`.

    Raises:
        UserError: In place of such an error.
    """
    try:
        yield
    except DAMAGE as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: BaseException) -> UserError:
    """Says that a database's records are not as they were written."""
    said = f"{type(error).__name__}: {str(error)[:200]}"
    return UserError(f"{path}: damaged ({said}), expected its records as they were written")


def scalar(value: Any) -> Any:
    """Returns a number or string as plain Python; numpy scalars are converted."""
    return value.item() if hasattr(value, "item") else value


def to_json(data: Any) -> str:
    """Returns one line of JSON; numpy scalars and arrays become plain numbers and lists."""
    return json.dumps(data, default=_plain, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be recorded, expected JSON data: {value!r:.100}")


def _without_clock(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_clock(value) for key, value in data.items() if not key.endswith("_s")}
    if isinstance(data, list):
        return [_without_clock(value) for value in data]
    return data
