"""The pictures of a run, drawn from its record."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from altojax.report.record_tables import HYPERPARAMETERS, plain
from altojax.report.run_record import RunRecord, TrialRecord
from jaxrun.plots.pictures import Picture
from jaxrun.plots.plots import Column, Series, Span, bars, loss_curves, parallel_coordinates, timeline

COLOURS = {
    "completed": "#009E73",
    "underperforming": "#E69F00",
    "diverging": "#D55E00",
    "overfitting": "#CC79A7",
    "not finite": "#7F7F7F",
    "running": "#0072B2",
    "parked": "#56B4E9",
    "waiting": "#8C6D31",
    "planned": "#C7B48F",
}
"""Fate of a trial -> colour, the same in every figure; colours that colour-blind readers can tell apart."""

_PROJECTION = "_proj"
_LOGARITHMIC = {"learning_rate", "rank", "alpha", "batch_size"}


def task_pictures(record: RunRecord, task: str) -> list[Picture]:
    """Returns the loss curves of one task, and its hyper-parameters against the loss where any of them varies."""
    trials = record.of_task(task)
    best = record.best_of(task)
    pictures = [_losses(record, task, trials, best)]
    columns = varied(trials)
    measured = [trial for trial in trials if math.isfinite(trial.best_loss)]
    if columns and len(measured) > 1:
        pictures.append(_coordinates(task, measured, columns))
    return pictures


def run_pictures(record: RunRecord) -> list[Picture]:
    """Returns what concerns the run as a whole: its slots, the samples it saved, the time it took."""
    pictures = []
    if any(trial.spans for trial in record.trials):
        pictures.append(_slots(record))
    if any(trial.saved_samples for trial in record.trials):
        pictures.append(_saved(record))
    if record.clock.get("training_s"):
        pictures.append(_times(record.clock))
    return pictures


def hover(trial: TrialRecord, columns: list[str]) -> str:
    """Returns what a page shows of a trial under the mouse: its name, fate, best loss, and these hyper-parameters."""
    loss = f", best loss {trial.best_loss:.4g}" if math.isfinite(trial.best_loss) else ""
    return f"{trial.trial}: {trial.fate}{loss}; {settings(trial, columns)}".removesuffix("; ")


def settings(trial: TrialRecord, columns: Sequence[str]) -> str:
    """Returns hyper-parameters in words, such as ``rank 16, learning rate 0.0003``."""
    columns = [column for column in columns if HYPERPARAMETERS[column] in trial.config]
    values = [brief(trial.config[HYPERPARAMETERS[column]]) for column in columns]
    told = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return ", ".join(f"{column.replace('_', ' ')} {value}" for column, value in zip(columns, told, strict=True))


def brief(value: Any) -> Any:
    """Returns a hyper-parameter as one cell of a page: projections without their common ending, as in ``q, k, v``."""
    listed = value if isinstance(value, list | tuple) and value else None
    if listed and all(isinstance(one, str) and one.endswith(_PROJECTION) for one in listed):
        value = [one.removesuffix(_PROJECTION) for one in listed]
    told = plain(value)
    return told.replace(",", ", ") if listed else told


def varied(trials: list[TrialRecord]) -> list[str]:
    """Returns the columns of trials.csv that differ between `trials`, other than their seeds."""
    found = []
    for column, name in HYPERPARAMETERS.items():
        values = {plain(trial.config[name]) for trial in trials if name in trial.config}
        if len(values) > 1 and column != "seed":
            found.append(column)
    if {"rank", "alpha"} <= set(found) and len({_ratio(trial) for trial in trials}) == 1:
        found.remove("alpha")
    return found


def _losses(record: RunRecord, task: str, trials: list[TrialRecord], best: TrialRecord | None) -> Picture:
    columns = varied(trials)
    series = [
        Series(
            [point.samples for point in trial.validation],
            [math.nan if point.loss is None else point.loss for point in trial.validation],
            trial.fate,
            f"best: {trial.trial}",
            trial is best,
            hover(trial, columns),
        )
        for trial in trials
        if trial.validation
    ]
    base = record.base_loss.get(task)
    pairs = any(trial.select_by == "preference" for trial in trials)
    figure = loss_curves(
        series,
        title=f"{task}: validation loss",
        x_label="training samples",
        y_label="validation loss (each trial's own)" if pairs else "validation loss (nats per token)",
        colours=COLOURS,
        reference=None if base is None else (f"base {base:.3f}", base),
    )
    caption = "One line a trial, coloured by how it ended; the best is drawn thick. Each says its name under the mouse."
    return Picture(f"loss-{task}", "Validation loss", caption, figure)


def _coordinates(task: str, trials: list[TrialRecord], columns: list[str]) -> Picture:
    figure = parallel_coordinates(
        [Column(column.replace("_", " "), _log(column, trials)) for column in columns],
        [[_axis_value(trial.config.get(HYPERPARAMETERS[column])) for column in columns] for trial in trials],
        [trial.best_loss for trial in trials],
        title=f"{task}: hyper-parameters and best validation loss",
        value_label="best validation loss",
        ended=[trial.fate if trial.status == "stopped" else "" for trial in trials],
        names=[hover(trial, columns) for trial in trials],
        colours=COLOURS,
    )
    caption = (
        "One line a trial through its hyper-parameters to its best validation loss. Trials that were ended early are "
        "dashed, with a cross; they might have come further."
    )
    return Picture(f"hyperparameters-{task}", "Hyper-parameters", caption, figure)


def _slots(record: RunRecord) -> Picture:
    several = len(record.tasks) > 1
    spans = [
        Span(
            span.slot,
            span.begin,
            record.ticks if span.end is None else span.end,
            trial.trial.removeprefix("trial-"),
            trial.task if several else trial.fate,
        )
        for trial in record.trials
        for span in trial.spans
    ]
    colours = None if several else COLOURS
    title, x_label = "Who trained in which slot", "training step of the run"
    figure = timeline(spans, title=title, x_label=x_label, lane_label="slot", colours=colours)
    caption = f"One block a stay of a trial in a slot, coloured by {'task' if several else 'how the trial ended'}."
    return Picture("slots", "Slots", caption, figure)


def _saved(record: RunRecord) -> Picture:
    reasons = list(dict.fromkeys(trial.reason for trial in record.trials if trial.saved_samples))
    tasks = list(record.tasks)
    rows = [*tasks, "all tasks"] if len(tasks) > 1 else tasks
    series = {
        reason: [
            round(100 * saved_share(list(record.trials) if row == "all tasks" else record.of_task(row), reason), 1)
            for row in rows
        ]
        for reason in reasons
    }
    title = f"Training samples saved: {100 * saved_share(list(record.trials)):.1f} %"
    figure = bars(rows, series, title=title, value_label="% of all scheduled samples", colours=COLOURS)
    caption = "Share of the samples of all schedules that ended trials did not train on, by the reason of their end."
    return Picture("saved", "Samples saved", caption, figure)


def _times(clock: Mapping[str, Any]) -> Picture:
    parts = {
        "training": clock["training_s"],
        "evaluation": clock["evaluation_s"],
        "compilation": clock["compile_s"],
        "slots filled and emptied": clock["exchange_s"],
        "checkpoints": clock["checkpoint_s"],
    }
    parts["start and all else"] = max(0.0, clock["whole_s"] - sum(parts.values()))
    alone = clock.get("alone_s")
    whole = {} if alone is None else {"one trial at a time (estimate)": alone}
    known = {**whole, "this run": clock["whole_s"], **parts}
    longest = max(known.values())
    unit, seconds = ("seconds", 1) if longest < 120 else ("minutes", 60) if longest < 7200 else ("hours", 3600)
    shown = [float(f"{value / seconds:.3g}") for value in known.values()]
    figure = bars(list(known), {unit: shown}, title="Time", value_label=unit)
    caption = "Where the run's time went."
    if alone is not None:
        caption += (
            " Above it an estimate of the same steps taken one trial at a time, at the speed that this run's own steps "
            "had. It has the same start, compilations, evaluations and checkpoints, and no slots to fill."
        )
    return Picture("time", "Time", caption, figure)


def saved_share(trials: list[TrialRecord], reason: str | None = None) -> float:
    """Returns the share of all scheduled samples that trials ended for `reason` (None: any) did not train on."""
    scheduled = sum(trial.total_samples for trial in trials)
    saved = sum(trial.saved_samples for trial in trials if reason in (None, trial.reason))
    return saved / scheduled if scheduled else 0.0


def _ratio(trial: TrialRecord) -> float:
    return float(trial.config["lora_alpha"]) / float(trial.config["lora_rank"])


def _axis_value(value: Any) -> Any:
    return str(value) if isinstance(value, bool) else brief(value)


def _log(column: str, trials: list[TrialRecord]) -> bool | None:
    values = [trial.config.get(HYPERPARAMETERS[column]) for trial in trials]
    positive = all(isinstance(value, int | float) and value > 0 for value in values)
    return True if column in _LOGARITHMIC and positive else None
