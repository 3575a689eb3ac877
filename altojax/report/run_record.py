"""Each trial's record, read from a run's journal for report, status and trials.csv."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from altojax.config.objectives import base_loss_of
from altojax.early_exit.curve import AVERAGE
from altojax.early_exit.metric import METRIC_NAMES, Score, beats, leader_of, metric_text
from altojax.report.held_out import HeldOut
from jaxrun.store.journal import Journal
from jaxrun.store.opening import refuse_run_of_another
from jaxrun.store.records import Event, Point
from jaxrun.store.run_folder import state_of_run
from jaxrun.terminal.printable import printable, printable_data

_SECONDS = ("whole_s", "training_s", "evaluation_s", "exchange_s", "checkpoint_s", "compile_s")
AVERAGE_SPLIT = "average"
"""Of a journal's points, that of the loss of a trial's averaged adapter; of further windows average_2 and so on."""


@dataclass(frozen=True)
class SlotSpan:
    """A stretch of a trial in one slot: from the tick it entered to the tick it left, `end` None while it is there."""

    slot: int
    begin: int
    end: int | None
    seconds: float | None


@dataclass
class TrialRecord:
    """One trial.

    Attributes:
        task: Its task.
        trial: Its name.
        config: Its hyper-parameters, by configuration field.
        total_steps: Optimizer steps of its schedule.
        total_samples: Samples of its schedule.
        schedule: When it may be compared, as `altojax.early_exit.milestones.MilestoneSchedule` has it.
        status: planned where its configuration is not decided yet, waiting, running, parked, completed or stopped.
        reason: Why it ended.
        detail: The same with numbers.
        steps: Optimizer steps done.
        samples: Training samples seen.
        tokens: Training tokens seen up to its last evaluation.
        base_loss: Validation loss of the base on its task, by the trial's own loss; None where that was not known yet.
        base_metric: Metric of the base, None where it was not asked.
        select_by: What decides between trials.
        validation: Evaluations, oldest first.
        results: Finite evaluations whose adapter may be its result, of its averaged adapters too, oldest first.
        best: That of them whose adapter is its result.
        train: Mean training losses between evaluations.
        more: Losses of its averaged adapters, and its metric, by step, by the name that they have in curves.
        spans: Its time in slots.
        slot_s: Seconds in slots, each step's shared by those it carried; None where the journal does not say.
        metrics: Numbers that the caller's metric made of its evaluations, by step.
        around: Names of the trials around which it was proposed; None where it was not.
        start: The adapter that it starts from, in words; None where that is random.
    """

    task: str
    trial: str
    config: Mapping[str, Any]
    total_steps: int
    total_samples: int
    schedule: Mapping[str, Any]
    status: str = "waiting"
    reason: str = ""
    detail: str = ""
    steps: int = 0
    samples: int = 0
    tokens: int = 0
    base_loss: float | None = None
    base_metric: float | None = None
    select_by: str = "loss"
    validation: list[Point] = field(default_factory=list)
    results: list[Point] = field(default_factory=list)
    best: Point | None = None
    train: list[Point] = field(default_factory=list)
    more: dict[str, dict[int, float | None]] = field(default_factory=dict)
    spans: list[SlotSpan] = field(default_factory=list)
    slot_s: float | None = None
    metrics: dict[int, Mapping[str, float]] = field(default_factory=dict)
    around: Sequence[str] | None = None
    start: str | None = None

    @property
    def best_loss(self) -> float:
        """Loss of its best evaluation, or infinity."""
        return math.inf if self.best is None or self.best.loss is None else self.best.loss

    @property
    def best_score(self) -> Score:
        """What it is compared by with others: metric, if it was asked for it, and loss of its best evaluation."""
        return Score.of((), self.best_loss) if self.best is None else self.score_of(self.best)

    @property
    def metric(self) -> float | None:
        """Metric of its best evaluation, None where it was not asked."""
        return self.best_score.metric if self.best_score.asked else None

    def metric_sentence(self) -> str:
        """Says its metric, which it has, and the base's."""
        text = metric_text(self.select_by, self.best_score.metric, self.best_score.error)
        return text if self.base_metric is None else f"{text} (base {100 * self.base_metric:.1f} %)"

    def score_of(self, point: Point) -> Score:
        """Returns the score of its adapter, or of its average, with the finite loss of a point."""
        measured = {name: by_step.get(point.step) for name, by_step in self.more.items()}
        return Score.among(measured, point.loss or 0.0, average=point.split == AVERAGE_SPLIT)

    @property
    def fate(self) -> str:
        """Its reason if it was stopped, else its status."""
        return self.reason if self.status == "stopped" else self.status

    @property
    def saved_samples(self) -> int:
        """Samples of its schedule it did not have to train on."""
        return self.total_samples - self.samples if self.status == "stopped" else 0


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        trials: All trials, in the order of the run.
        base_loss: Validation loss of the base, by task, of those whose trials have one loss.
        clock: Times and speeds, as the run stored them.
        ticks: Training steps of the whole run so far.
        finished: Whether the run has come to its end.
        live: Whether a process works on it now.
        start: What the run said of itself when it began, latest first start last.
        rungs: The rung events.
        held_out: The tests at the end, by task.
        is_cut: Whether older events or losses were left out.
    """

    trials: tuple[TrialRecord, ...]
    base_loss: Mapping[str, float]
    clock: Mapping[str, Any]
    ticks: int
    finished: bool
    live: bool
    start: Mapping[str, Any]
    rungs: tuple[Event, ...]
    held_out: Mapping[str, HeldOut] = field(default_factory=dict)
    is_cut: bool = False

    @property
    def state(self) -> str:
        """Whether it is finished, live or interrupted."""
        return state_of_run(finished=self.finished, live=self.live, verb="tune")

    @cached_property
    def _by_task(self) -> Mapping[str, Sequence[TrialRecord]]:
        found: dict[str, list[TrialRecord]] = {}
        for trial in self.trials:
            found.setdefault(trial.task, []).append(trial)
        return found

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the run."""
        return tuple(self._by_task)

    def of_task(self, task: str | None) -> list[TrialRecord]:
        """The trials of one task; None is all."""
        return list(self.trials if task is None else self._by_task.get(task, ()))

    def best_of(self, task: str) -> TrialRecord | None:
        """The trial with the lowest validation loss, the earlier one of equals; None before any has one.

        Where trials were asked for a metric, it is the first by that, as `altojax.early_exit.metric` ranks them.
        """
        finite = [trial for trial in self.of_task(task) if math.isfinite(trial.best_loss)]
        scores = {place: trial.best_score for place, trial in enumerate(finite)}
        return finite[leader_of(scores)] if finite else None


def read_record(journal: Journal, most: int | None = None) -> RunRecord:
    """Gathers everything a report needs from a journal, finished or live; all its texts can be printed.

    Args:
        journal: The run's.
        most: Read at most so many of the newest events, and of the newest losses; None is all.

    Raises:
        UserError: Its records are not as a run writes them.
    """
    with journal.interpreted():
        return _record(journal, most)


def _record(journal: Journal, most: int | None) -> RunRecord:
    newest = -1 if most is None else most + 1
    events, points = journal.events(newest=newest), journal.points(newest=newest)
    bases = {_name(event)[0]: event.payload for event in events if event.kind == "base_loss"}
    base_metric = {task: float(payload["metric"]) for task, payload in bases.items() if "metric" in payload}
    select_by = printable(str(journal.get("select_by", "loss")))
    listed = printable_data(journal.get("trials", []))
    trials = {
        (str(one["task"]), str(one["trial"])): TrialRecord(
            task=str(one["task"]),
            trial=str(one["trial"]),
            config=dict(one["config"]),
            total_steps=int(one["total_steps"]),
            total_samples=int(one["total_samples"]),
            schedule=dict(one["schedule"]),
            base_loss=base_loss_of(bases[one["task"]], one["config"]) if one["task"] in bases else None,
            base_metric=base_metric.get(one["task"]),
            select_by=str(one.get("select_by", select_by)),
            status="waiting" if one.get("decided", one.get("around", ()) is not None) else "planned",
            around=one.get("around"),
            start=one.get("start"),
        )
        for one in listed
    }
    by_task: dict[str, set[float | None]] = {task: set() for task in bases}
    for (task, _), one in trials.items():
        by_task.get(task, set()).add(one.base_loss)
    _add_points(trials, points, str(journal.get("result", "best")))
    open_spans, kinds = dict[tuple[str, str], Event](), defaultdict[str, list[Event]](list)
    for event in events:
        name = _name(event)
        if name in trials and event.kind in ("start", "resume", "park", "end"):
            _add_event(trials[name], event, open_spans)
        elif name in trials and event.kind == "metric":
            trials[name].metrics[event.payload["step"]] = event.payload["metrics"]
        kinds[event.kind].append(event)
    for name, opened in open_spans.items():
        trials[name].spans.append(SlotSpan(opened.payload["slot"], opened.tick, None, None))
    for trial in trials.values():
        if trial.slot_s is None:
            trial.slot_s = sum(span.seconds or 0 for span in trial.spans)
    return RunRecord(
        trials=tuple(trials.values()),
        base_loss={task: loss for task, of in by_task.items() if len(of) == 1 and (loss := next(iter(of))) is not None},
        clock=_clock(journal.get("clock", {})),
        ticks=max((event.tick for event in events), default=0),
        finished=bool(kinds["finish"]),
        live=journal.live,
        start=printable_data(kinds["run_start"][-1].payload) if kinds["run_start"] else {},
        rungs=tuple(kinds["rung"]),
        held_out={_name(event)[0]: HeldOut.from_payload(event.payload) for event in kinds["test"]},
        is_cut=most is not None and max(len(events), len(points)) > most,
    )


def record_of(run_dir: str | Path) -> RunRecord:
    """Returns what `read_record` does of a run's folder.

    Raises:
        UserError: There is no run of ``altojax tune``, or as `read_record`.
    """
    with Journal.read(run_dir) as journal:
        refuse_run_of_another(journal, "data", "altojax tune")
        return read_record(journal)


def _add_points(trials: Mapping[tuple[str, str], TrialRecord], points: Sequence[Point], result: str) -> None:
    results = {"best": ("validation", AVERAGE_SPLIT), "last": ("validation",), "average": (AVERAGE_SPLIT,)}[result]
    for point in points:
        trial = trials.get(_name(point))
        if trial is None:
            continue
        if point.split == "validation":
            trial.validation.append(point)
        elif point.split == "train":
            trial.train.append(point)
        elif point.split in METRIC_NAMES:
            trial.more.setdefault(point.split, {})[point.step] = point.loss
        elif point.split.startswith(AVERAGE_SPLIT):
            name = point.split.replace(AVERAGE_SPLIT, AVERAGE, 1)
            trial.more.setdefault(name, {})[point.step] = point.loss
        trial.steps, trial.samples = max(trial.steps, point.step), max(trial.samples, point.samples)
        trial.tokens = max(trial.tokens, point.tokens)
        if point.split not in results or point.loss is None or not math.isfinite(point.loss):
            continue
        trial.results.append(point)
        if result != "best" or beats(trial.score_of(point), trial.best_score):
            trial.best = point


def _add_event(trial: TrialRecord, event: Event, open_spans: dict[tuple[str, str], Event]) -> None:
    name, payload = (trial.task, trial.trial), event.payload
    trial.steps, trial.samples = max(trial.steps, payload["step"]), max(trial.samples, payload["samples"])
    if event.kind in ("start", "resume"):
        trial.status = "running"
        open_spans[name] = event
        return
    opened = open_spans.pop(name, None)
    if opened is not None:
        seconds = max(event.wall_s - opened.wall_s, 0.0)
        trial.spans.append(SlotSpan(opened.payload["slot"], opened.tick, event.tick, seconds))
    if event.kind == "park":
        trial.status = "parked"
        return
    trial.status, trial.reason, trial.detail = (printable(payload[key]) for key in ("status", "reason", "detail"))
    trial.slot_s = payload.get("slot_s")


def _clock(stored: Any) -> dict[str, Any]:
    """Returns times and speeds as a run stored them, checked to be what is shown of them."""
    clock = dict(printable_data(stored))
    if not clock:
        return {}
    first = {"devices": 1, "imbalance": 0.0, "metric_s": 0.0}  # which earlier versions do not have
    clock = first | clock
    clock |= {name: int(clock[name]) for name in ("compiles", "devices")}
    clock |= {name: float(clock[name]) for name in (*_SECONDS, "tokens_per_s", "imbalance", "metric_s")}
    clock |= {name: float(clock[name]) for name in ("alone_s", "padding") if clock.get(name) is not None}
    return clock


def _name(record: Event | Point) -> tuple[str, str]:
    """Returns the task and the trial that a record is about."""
    return printable(str(record.task)), printable(str(record.trial))
