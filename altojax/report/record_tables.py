"""Tables of a run's record: a row for each trial, or for each evaluation."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from altojax.config.objectives import PREFERENCE_KEYS
from altojax.report.held_out import HeldOut
from altojax.report.run_record import AVERAGE_SPLIT, RunRecord, TrialRecord

HYPERPARAMETERS = {
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "use_rslora": "use_rslora",
    "dropout": "lora_dropout",
    "target_modules": "target_modules",
    "target_parameters": "target_parameters",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "lr_scheduler_type",
    "warmup_ratio": "warmup_ratio",
    "weight_decay": "weight_decay",
    "batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    **{key: key for key in PREFERENCE_KEYS},
    "seed": "seed",
}
"""Column of trials.csv -> field of the trial's configuration."""


def trial_rows(record: RunRecord, task: str | None = None) -> list[dict[str, Any]]:
    """Returns a row of cells for each trial of a task, or of all, by column; None where nothing is known."""

    def tested(trial: TrialRecord) -> HeldOut | None:
        return found if (found := record.held_out.get(trial.task)) and found.trial == trial.trial else None

    return [
        {
            "task": trial.task,
            "trial": trial.trial,
            "status": trial.status,
            "reason": trial.reason,
            "detail": trial.detail,
            "proposed_around": plain(trial.around),
            "started_from": plain(trial.start),
            **{column: plain(trial.config.get(name)) for column, name in HYPERPARAMETERS.items()},
            "best_val_loss": None if trial.best is None else trial.best.loss,
            "best_step": None if trial.best is None else trial.best.step,
            "averaged": None if trial.best is None else trial.best.split == AVERAGE_SPLIT,
            "base_val_loss": trial.base_loss,
            "metric": trial.metric,
            "metric_error": trial.best_score.error if trial.best_score.asked else None,
            "base_metric": trial.base_metric,
            "test_loss": None if (found := tested(trial)) is None else found.loss,
            "base_test_loss": None if found is None else found.base_loss,
            "test_error": None if found is None else found.error,
            "test_accuracy": None if found is None else found.accuracy,
            "steps": trial.steps,
            "total_steps": trial.total_steps,
            "samples": trial.samples,
            "total_samples": trial.total_samples,
            "tokens": trial.tokens,
            "slot_seconds": None if trial.slot_s is None else round(trial.slot_s, 3),
        }
        for trial in record.of_task(task)
    ]


def curve_rows(trials: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Returns a row of cells for each evaluation, by column, with the numbers of the caller's metric last.

    Where a trial of them has averaged adapters, there is a column for the losses of each; likewise for its metric.
    """
    more = sorted({name for trial in trials for name in trial.more})
    rows = []
    for trial in trials:
        train = {point.step: point for point in trial.train}
        for point in trial.validation:
            beside = train.get(point.step)
            rows.append(
                {
                    "task": trial.task,
                    "trial": trial.trial,
                    "step": point.step,
                    "samples": point.samples,
                    "tokens": point.tokens,
                    "train_loss": None if beside is None else beside.loss,
                    "val_loss": point.loss,
                    **{name: trial.more.get(name, {}).get(point.step) for name in more},
                    "learning_rate": None if beside is None else beside.lr,
                    "seconds": point.time_s,
                    **trial.metrics.get(point.step, {}),
                }
            )
    return rows


def trials_csv(record: RunRecord) -> str:
    """Returns the table of trials as CSV, one row a trial, in the order of the run."""
    rows, out = trial_rows(record), io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([list(rows[0] if rows else ()), *(row.values() for row in rows)])
    return out.getvalue()


def plain(value: Any) -> Any:
    """Returns a hyper-parameter as one cell: a list becomes its entries with commas."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else value
