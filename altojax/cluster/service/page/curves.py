"""Loss curves of a task, read from the journal of its live run."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic

from altojax.report.run_record import RunRecord, TrialRecord, read_record
from jaxrun.store.journal import Journal
from jaxrun.store.records import RECORD_BYTES, Point
from jaxrun.store.run_folder import JOURNAL_NAME

_MOST_POINTS = 240
MOST_READ = 100_000
"""Events, and losses, that are read of a journal: its user may write any number."""


@dataclass(frozen=True)
class LossCurve:
    """Losses of one trial.

    Attributes:
        trial: Its name.
        index: Its place among the task's trials; its colour.
        status: waiting, running, parked, completed or stopped.
        fate: Why it was stopped, else its status.
        samples: Training samples at each point, [n].
        losses: Nats per token, [n]; None is not finite.
        best: The lowest of all.
    """

    trial: str
    index: int
    status: str
    fate: str
    samples: tuple[int, ...]
    losses: tuple[float | None, ...]
    best: float | None


@dataclass(frozen=True)
class Losses:
    """Losses of one of a run's tasks.

    Attributes:
        task: Its name in the run.
        base: Validation loss of the base.
        split: ``validation``, or ``train`` before the first evaluation.
        total_samples: Of the longest schedule.
        trials: How many there are.
        curves: Those that have a loss, in the order of the run.
        note: What came of the test at the end, and what is left out; or nothing.
    """

    task: str
    base: float | None
    split: str
    total_samples: int
    trials: int
    curves: tuple[LossCurve, ...]
    note: str = ""


_LOSSES = pydantic.TypeAdapter(tuple[Losses, ...])


def to_json(losses: Sequence[Losses]) -> bytes:
    """Returns losses as JSON."""
    return _LOSSES.dump_json(tuple(losses))


def read_losses(run_dir: Path, tasks: Collection[str]) -> tuple[Losses, ...]:
    """Returns what the journal of a run holds now of some of its tasks; nothing where the run has not begun.

    Of a long journal it is what the newest `MOST_READ` events and losses tell.

    Raises:
        UserError: The journal cannot be read.
    """
    if not (run_dir / JOURNAL_NAME).is_file():
        return ()
    with Journal.read(run_dir, most_bytes=RECORD_BYTES) as journal:
        record = read_record(journal, MOST_READ)
        return tuple(_losses(record, task) for task in record.tasks if task in tasks)


def mark(run_dir: Path) -> tuple[int, ...]:
    """Returns numbers that change whenever a run's journal does."""
    found: list[int] = []
    for name in (JOURNAL_NAME, f"{JOURNAL_NAME}-wal"):
        try:
            about = (run_dir / name).stat()
        except FileNotFoundError:
            found.append(0)
        else:
            found += [about.st_ino, about.st_mtime_ns, about.st_size]
    return tuple(found)


def _losses(record: RunRecord, task: str) -> Losses:
    trials = record.of_task(task)
    split = "validation" if any(trial.validation for trial in trials) else "train"
    return Losses(
        task=task,
        base=_finite(record.base_loss.get(task)),
        split=split,
        total_samples=max((trial.total_samples for trial in trials), default=0),
        trials=len(trials),
        curves=tuple(
            _curve(trial, index, points)
            for index, trial in enumerate(trials)
            if (points := trial.validation if split == "validation" else trial.train)
        ),
        note=" ".join(_notes(record, task)),
    )


def _notes(record: RunRecord, task: str) -> Iterator[str]:
    if (found := record.held_out.get(task)) is not None:
        yield f"{found.trial}: {found.sentence()}."
    if record.is_cut:
        yield f"Of a long journal, only the newest {MOST_READ:,} losses are shown."


def _curve(trial: TrialRecord, index: int, points: Sequence[Point]) -> LossCurve:
    finite = [loss for point in points if (loss := _finite(point.loss)) is not None]
    shown = _thinned(points)
    return LossCurve(
        trial=trial.trial,
        index=index,
        status=trial.status,
        fate=trial.fate,
        samples=tuple(point.samples for point in shown),
        losses=tuple(_finite(point.loss) for point in shown),
        best=min(finite, default=None),
    )


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Returns at most `_MOST_POINTS` points, evenly spread, among them the newest."""
    every = math.ceil(len(points) / _MOST_POINTS)
    return list(points[::-1][:: max(every, 1)][::-1])


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
