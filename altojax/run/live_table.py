"""The live table of a tuning run, or plain lines where the output is no terminal."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

from rich.console import Console

from altojax.early_exit.metric import metric_text
from altojax.report.held_out import HeldOut
from altojax.report.trial_labels import labels
from altojax.run.prepare import PreparedRun
from altojax.run.run_times import RunTimes
from altojax.run.trial import Trial, TrialProgress
from jaxrun.store.records import Event
from jaxrun.terminal.progress import Progress, Summary, TrialRow

_STATUS = {"rung": "parked", "planned": "planned", "waiting": "waiting", "running": "running"}


class TrialTable(Progress):
    """Shows trials and prints decisions; use it as a context manager."""

    def __init__(self, console: Console, prepared: PreparedRun):
        """Makes the table of the run's trials."""
        super().__init__(console)
        self._prepared = prepared
        self._labels: dict[str, str] = {}
        self._label()

    def _label(self) -> None:
        """Gives trials their labels, which those have that are decided."""
        of_task: dict[str, list[Trial]] = {}
        for trial in (trial for base in self._prepared.bases for trial in base.trials):
            of_task.setdefault(trial.task, []).append(trial)
        for trials in of_task.values():
            named = zip(trials, labels([one.settings for one in trials]), strict=True)
            self._labels |= {trial.full_name: label if trial.decided else "" for trial, label in named}

    def __enter__(self) -> Self:
        super().__enter__()
        for task, data in self._prepared.data.items():
            for line in data.notes:
                self.say(f"{task}: {line}")
        return self

    def report(self, events: Sequence[Event]) -> None:
        """Prints a line for each decision worth one."""
        if any(event.kind in ("propose", "adopt") for event in events):
            self._label()
        for event in events:
            line = _line(event)
            if line:
                self.say(line)

    def show(self, trials: Sequence[Trial], progress: Sequence[TrialProgress], clock: RunTimes, compiles: int) -> None:
        """Updates the table where it is time to.

        What is left is expected at the pace so far, without starts and compilations.
        """
        self.offer(partial(self._state, trials, progress, clock, compiles))

    def _state(
        self, trials: Sequence[Trial], progress: Sequence[TrialProgress], clock: RunTimes, compiles: int
    ) -> tuple[list[TrialRow], Summary]:
        rows = [_row(t, one, self._labels[f"{t.task}/{t.name}"]) for t, one in zip(trials, progress, strict=True)]
        left = sum(
            trial.stream.total_samples - trial.stream.samples_after(one.step)
            for trial, one in zip(trials, progress, strict=True)
            if one.phase != "done"
        )
        done = sum(trial.stream.samples_after(one.step) for trial, one in zip(trials, progress, strict=True))
        speed = done / clock.working_s if clock.working_s else 0.0
        return rows, Summary(
            tokens_per_s=clock.tokens_per_s or None,
            eta_s=left / speed if speed else None,
            elapsed_s=clock.whole_s,
            done=sum(one.phase == "done" for one in progress),
            total=len(progress),
            compiles=compiles,
            provided="if no more trials end early",
        )


def _row(trial: Trial, progress: TrialProgress, label: str) -> TrialRow:
    return TrialRow(
        trial.task,
        trial.name,
        _STATUS.get(progress.phase, progress.status),
        progress.step,
        trial.stream.total_steps,
        progress.train_loss[-1] if progress.train_loss else None,
        progress.val_loss[-1] if progress.val_loss else None,
        [loss for loss in progress.val_loss if math.isfinite(loss)],
        progress.reason,
        label,
        progress.best_loss,
    )


def _line(event: Event) -> str:
    payload: dict[str, Any] = event.payload
    if event.kind == "base_loss":
        asked = [payload[name] for name in ("select_by", "metric", "metric_error") if name in payload]
        metric = f", {metric_text(*asked)}" if asked else ""
        of = f", by its first of {len(payload['by_loss'])} losses" if len(payload.get("by_loss", ())) > 1 else ""
        return f"{event.task}: base model's validation loss {payload['loss']:.4f}{of}{metric}"
    if event.kind == "propose":
        around = f", around {', '.join(payload['around'])}" if payload["around"] else ", at random: no proposal was new"
        return f"{event.task}/{event.trial}: proposed{around}"
    if event.kind == "adopt":
        return f"{event.task}: starts from {payload['from']}, of rank {payload['lora_rank']}"
    if event.kind == "rung":
        kept, ended = payload["kept"], payload["ended"]
        return f"{event.task}: rung {payload['index'] + 1}: {len(kept)} continue ({', '.join(kept)}), {len(ended)} end"
    if event.kind == "end":
        detail = f" ({payload['detail']})" if payload["detail"] else ""
        return f"{event.task}/{event.trial}: {payload['status']} at step {payload['step']}: {payload['reason']}{detail}"
    if event.kind == "test":
        return f"{event.task}: {event.trial}: {HeldOut.from_payload(payload).sentence()}"
    return ""
