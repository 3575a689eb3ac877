"""Results of a run, for those who compute with them: the best trials, tables of trials and of curves."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altojax.report.held_out import HeldOut
from altojax.report.record_tables import curve_rows, trial_rows
from altojax.report.run_record import RunRecord, record_of
from jaxrun.config.python_values import path_of, text_of
from jaxrun.process.errors import UserError, nearest
from jaxrun.store.frames import frame


@dataclass(frozen=True)
class BestTrial:
    """The best trial of a task, by validation loss or what the run selects by. Losses are in nats per target token.

    Attributes:
        task: The task's name.
        trial: The trial's name.
        loss: Its lowest validation loss.
        step: The optimizer step at which it had that.
        base_loss: Validation loss of the base without an adapter; None before it is known.
        settings: Its hyper-parameters, by the keys of ``search``.
        adapter: The folder of its adapter; None before the run has written it.
        metric: What the run selects by, of it, and
        base_metric: Of the base; None where losses decide.
        held_out: Its losses and the base's on the test rows; None before they are measured, or where there are none.
    """

    task: str
    trial: str
    loss: float
    step: int
    base_loss: float | None
    settings: Mapping[str, Any]
    adapter: Path | None
    held_out: HeldOut | None
    metric: float | None = None
    base_metric: float | None = None


class Run:
    """A run of ``altojax tune``, as its journal has it now: live, stopped or finished.

    Attributes:
        path: Its folder.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens it.

        Raises:
            UserError: There is none.
        """
        self.path = path_of(path, "run")
        self._record()

    def __repr__(self) -> str:
        record = self._record()
        return f"<Run {self.path}: {record.state}, {len(record.trials)} trials of {', '.join(record.tasks)}>"

    @property
    def state(self) -> str:
        """Whether it is finished, live or interrupted, in words."""
        return self._record().state

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of its tasks."""
        return self._record().tasks

    def best(self, task: str | None = None) -> BestTrial:
        """Returns the trial of the lowest validation loss, or the best by what the run selects by.

        Args:
            task: Of this task; may be left out where there is one.

        Raises:
            UserError: No such task, or no trial of it has a finite loss.
        """
        record = self._record()
        if task is None and len(record.tasks) != 1:
            raise UserError(f"best: no task given, expected one of {', '.join(record.tasks)}")
        name = self._known(record, task) or record.tasks[0]
        found = record.best_of(name)
        if found is None or found.best is None:
            raise UserError(f"{self.path}: no trial of task '{name}' has a finite validation loss")
        folder = self.path / name / "best"
        adapter = folder if record.finished and folder.is_dir() else None
        loss, step, base, tested = found.best_loss, found.best.step, found.base_loss, record.held_out.get(name)
        metrics = found.metric, found.base_metric
        return BestTrial(name, found.trial, loss, step, base, found.config, adapter, tested, *metrics)

    def trials(self, task: str | None = None) -> Any:
        """Returns a table of one row a trial, with the columns of trials.csv.

        Args:
            task: Of this task; None is all.

        Returns:
            A pandas DataFrame where pandas is installed, else a list of dicts, None for what is not known.

        Raises:
            UserError: No such task.
        """
        record = self._record()
        return frame(trial_rows(record, self._known(record, task)))

    def curves(self, task: str | None = None) -> Any:
        """Returns a table of one row an evaluation: losses, learning rate, seconds, and what a metric made of it.

        Args:
            task: Of this task; None is all.

        Returns:
            As `trials`.

        Raises:
            UserError: No such task.
        """
        record = self._record()
        return frame(curve_rows(record.of_task(self._known(record, task))))

    def _record(self) -> RunRecord:
        return record_of(self.path)

    def _known(self, record: RunRecord, task: str | None) -> str | None:
        task = text_of(task, "task")
        if task is not None and task not in record.tasks:
            hint = nearest(task, record.tasks)
            raise UserError(f"{self.path}: has no task '{task}'{hint}, expected one of {', '.join(record.tasks)}")
        return task
