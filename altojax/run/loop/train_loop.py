"""The loop over one base: fill slots, step, evaluate, decide, record.

A tick is a micro-batch of every trial at work: one training step of all slots, or several where they hold more than
memory does.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from altojax.config.tune_config import Result
from altojax.device.batch import Part, TokenRow, next_part
from altojax.device.batch_shapes import Shape
from altojax.device.executor import IN_FLIGHT
from altojax.device.memory import evaluation_rows
from altojax.device.step import StepReport
from altojax.early_exit.curve import average_split
from altojax.early_exit.metric import comparable_loss, error_of_share, metric_names
from altojax.early_exit.rules import Rules
from altojax.run.decisions import is_compared, is_due, judge, record_evaluation, settle_rungs
from altojax.run.loop.shape_forecast import Runner, forecast
from altojax.run.loop.slot_exchange import SlotExchange
from altojax.run.loop.task_metric import TaskMetric
from altojax.run.trial import Trial, TrialProgress
from jaxlm.devices.hosts import ALONE, Hosts
from jaxrun.process.interrupt import StopAsked, Stopped
from jaxrun.store.records import Event, Point
from jaxrun.terminal.sizes import counted

FLUSH_TICKS = 32
"""Steps that may be in flight, at most, before their losses are fetched."""
LOOK_TICKS = 32
"""Steps from one look at the batches to come to the next."""


@dataclass
class TrainLoop:
    """The training loop over one base: the trials of all its tasks, and where they stand.

    Attributes:
        exchange: Has the trials, and the executor with their slots.
        validation: Validation rows by task.
        rules: The early-exit rules.
        record: Called with a tick and its events and points.
        observe: Called with a trial that was evaluated; returns events to record and why it is to end, or None.
        result: Which adapter of a trial is its result.
        metric: What trials are selected by, measured at rungs and ends; None where nothing is asked of them.
        by_preference: Whether they are selected by how many pairs they prefer rightly, which every evaluation measures.
        measures_averages: Whether running averages are measured at every evaluation, not at rungs and ends alone.
        tick: Ticks done in the run.
        hosts: The processes of the run, each with a loop of its own.
        most_flying: Steps that may be in flight before their losses are fetched.
        asked: Asks the run to stop; None where several processes must agree on it first.
        met: Whether the last tick fetched or recorded something, which it then did on all processes.
    """

    exchange: SlotExchange
    validation: dict[str, Sequence[TokenRow]]
    rules: Rules
    record: Callable[[int, list[Event], list[Point]], None]
    observe: Callable[[Trial, TrialProgress], tuple[list[Event], str | None]]
    result: Result = "best"
    metric: TaskMetric | None = None
    by_preference: bool = False
    measures_averages: bool = False
    tick: int = 0
    hosts: Hosts = ALONE
    most_flying: int = FLUSH_TICKS
    asked: StopAsked | None = None
    met: bool = False
    _points: list[Point] = field(default_factory=list)
    _flying: list[tuple[StepReport, list[tuple[int, int, bool]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Names parts of the exchange that it uses often."""
        exchange = self.exchange
        self.executor, self.clock, self._events = exchange.executor, exchange.clock, exchange.events
        self.trials, self.progress = exchange.trials, exchange.progress

    @property
    def finished(self) -> bool:
        """Whether every trial has ended."""
        return all(progress.phase == "done" for progress in self.progress)

    def advance(self) -> None:
        """One tick.

        Every running trial takes one micro-batch; those due are evaluated and judged; the journal records it.

        Raises:
            UserError: Another process decided otherwise, or the journal cannot be written.
            Stopped: It was asked to, before the tick or between its steps and their evaluation, which then comes first.
        """
        self.exchange.fill()
        due = self._due()
        if not due and not self.finished:
            self._train()
            due = self._due()
        if not due and len(self._flying) >= self.most_flying:
            self.flush()
        if due:
            try:
                better = self._evaluate(due)
            except Stopped:
                self._tell()  # who came and went before these steps
                raise
            self._decide(due)
            self._agree(better)
            with self.clock.measure("exchange_s"):
                self.exchange.take_out(better)
        self.met = not self._flying or bool(self._events)
        self._tell()

    def _tell(self) -> None:
        """Records what has happened until this tick."""
        if self._events or self._points:
            events, points = self._events[:], self._points[:]
            self._events.clear()
            self._points.clear()
            self.record(self.tick, events, points)

    def flush(self) -> None:
        """Fetches the losses of the steps in flight and shares their time among the slots they carried."""
        if not self._flying:
            return
        reports = jax.device_get([report for report, _ in self._flying])
        elapsed = self.clock.stop_training()
        ticks: dict[int, int] = {}
        for report, carried in zip(reports, (c for _, c in self._flying), strict=True):
            for i, slot, applied in carried:
                progress = self.progress[i]
                progress.loss_sum += float(report.loss[slot])
                ticks[i] = ticks.get(i, 0) + 1
                if applied:
                    progress.loss_steps += 1
                    progress.grad_norm = float(report.grad_norm[slot])
                    progress.bad_steps = 0 if report.stepped[slot] else progress.bad_steps + 1
        share = elapsed / max(sum(ticks.values()), 1)
        for i, count in ticks.items():
            self.progress[i].slot_s += share * count
        self._flying.clear()

    def _train(self) -> None:
        if self.tick % LOOK_TICKS == 0 and self.executor.programs.looks("train"):
            self._look_ahead()
        batches = self._next()
        for _, shape in batches:
            compiling = time.perf_counter()
            # Who has come or gone is recorded with the tick that follows, so that one is not given up.
            self.executor.programs.get("train", shape, self.asked, gives_up=not self._events)
            self.clock.leave_out(time.perf_counter() - compiling)
        for parts, shape in batches:
            self._step(parts, shape)
        self.tick += 1

    def _next(self) -> list[tuple[list[Part], Shape]]:
        """Returns the parts and shapes of the next training steps: one, or as many as memory makes of it."""
        begun, programs = time.perf_counter(), self.executor.programs
        parts = []
        for i in self.exchange.running():
            trial, progress = self.trials[i], self.progress[i]
            parts.append(next_part(self.exchange.slot_of(i), trial.stream, trial.seed, progress.step, progress.micro))
        batches = [(step, programs.shape_of("train", step)) for step in programs.steps_of(parts)]
        self.clock.add("host_s", time.perf_counter() - begun)
        return batches

    def _step(self, parts: Sequence[Part], shape: Shape) -> None:
        """One training step, of the trials that these parts are of."""
        begun = time.perf_counter()
        in_slot = {self.exchange.slot_of(i): i for i in self.exchange.running()}
        trials = [in_slot[part.slot] for part in parts]
        for i, part in zip(trials, parts, strict=True):
            progress = self.progress[i]
            progress.tokens += sum(len(row.tokens) for row in part.rows)
            progress.micro = 0 if part.apply else progress.micro + 1
            progress.step += int(part.apply)
        self.clock.start_training()
        carried = [(i, part.slot, part.apply) for i, part in zip(trials, parts, strict=True)]
        self._flying.append((self.executor.train(parts, shape), carried))
        self.clock.add("host_s", time.perf_counter() - begun)
        dealt = self.executor.sharding.deal(parts)
        tokens = [sum(len(row.tokens) for part in own for row in part.rows) for own in dealt]
        samples = sum(len(part.rows) for part in parts) // self.executor.plan.objective.group
        computed = self.executor.programs.computed(parts, shape)
        self.clock.count_step(samples, computed, tokens, [self.executor.tokens_alone(part) for part in parts])
        if len(self._flying) >= IN_FLIGHT:
            jax.block_until_ready(self._flying[-IN_FLIGHT][0].loss)

    def _look_ahead(self) -> None:
        runners = [Runner(self.trials[i], self.progress[i], self.exchange.slot_of(i)) for i in self.exchange.running()]
        waiting = any(progress.phase in ("planned", "waiting") for progress in self.progress)
        ahead, times = forecast(runners, self.executor.programs.reach("train"), waiting=waiting)
        self.executor.programs.look("train", ahead, times)

    def _due(self) -> list[int]:
        """Returns the trials that have come to an evaluation and not had it."""
        return [i for i in self.exchange.running() if is_due(self.trials[i], self.progress[i])]

    def _evaluate(self, due: list[int]) -> list[int]:
        """Evaluates trials, and returns those that were never better.

        Losses of the steps in flight are fetched while the first batch is evaluated, so that the device has work.
        """
        waited_s, begun_s = self.executor.programs.stats().waited_s, time.perf_counter()

        def fetch() -> None:
            if not self._flying:
                return
            # Until then it was the steps that took the time, but for what was compiled.
            compiling_s = self.executor.programs.stats().waited_s - waited_s
            self.clock.leave_out(compiling_s)
            self.flush()
            self.clock.add("evaluation_s", begun_s + compiling_s - time.perf_counter())

        with self.clock.measure("evaluation_s"):
            measured, *means = self._losses(due, fetch)
        self.clock.add("evaluation_s", waited_s - self.executor.programs.stats().waited_s)
        scores = self._scores([i for i in due if is_compared(self.trials[i], self.progress[i])])
        rates = self.executor.learning_rates(self._steps())
        better = []
        for i in due:
            trial, progress, slot = self.trials[i], self.progress[i], self.exchange.slot_of(i)
            losses, metrics = _apart(measured[i])
            averages = [_apart(found[i])[0] for found in means if i in found]
            if self.by_preference:
                average = [found[i] for found in means[:1] if i in found]
                scores[i] = self._preference(trial.task, [measured[i], *average])
            if record_evaluation(trial, progress, losses, averages, self.result, scores.get(i)):
                better.append(i)
            at = trial.task, trial.name, progress.step, trial.stream.samples_after(progress.step), progress.tokens
            now_s = round(self.clock.elapsed_s, 3)
            train = Point(*at, "train", progress.train_loss[-1], float(rates[slot]), now_s, progress.grad_norm)
            # The metric first: readers know it when they come to the loss that it goes with.
            values = {**scores.get(i, {}), **metrics, "validation": losses}
            values |= {average_split(window): loss for window, loss in enumerate(averages)}
            self._points += [train, *(Point(*at, split, value, None, now_s) for split, value in values.items())]
        return better

    def _losses(self, due: list[int], begun: Callable[[], None]) -> list[dict[int, dict[str, float]]]:
        """Returns the validation loss and metrics of trials, then those of each running average that is measured now.

        Args:
            due: The trials.
            begun: Called once the device has something to evaluate.
        """
        compared = [i for i in due if self.measures_averages or is_compared(self.trials[i], self.progress[i])]
        measured: list[tuple[int | None, list[int]]] = [(None, due)]
        measured += [(window, compared) for window in range(len(self.executor.plan.averages)) if compared]
        found: list[dict[int, dict[str, float]]] = []
        for average, those in measured:
            slots = [(self.exchange.slot_of(i), self.validation[self.trials[i].task]) for i in those]
            again = [sum(step > self.progress[i].step for step in self.trials[i].eval_steps) for i in those]
            kinds: dict[str, Any] = {"again": sum(again) / len(again), "average": average, "asked": self.asked}
            measures = self.executor.measure(slots, self.rows_at_once(slots), begun=None if found else begun, **kinds)
            found.append({i: measures[slot] for i, (slot, _) in zip(those, slots, strict=True)})
        return found

    def _scores(self, compared: Sequence[int]) -> dict[int, dict[str, float]]:
        """Returns the metric and its error, by their names in curves, of trials that are compared now.

        They are those of the trial's adapter, of its running average, or of both; nothing where losses decide.
        """
        if self.metric is None or not compared:
            return {}
        slots = [(self.exchange.slot_of(i), self.trials[i].task) for i in compared]
        again = sum(len(self.trials[i].rungs) - self.progress[i].rung for i in compared) / len(compared)
        scores: dict[int, dict[str, float]] = {i: {} for i in compared}
        for average in self.metric.config.adapters_asked:
            found = self.metric.measure(slots, self.rows_at_once, average=average, again=again, asked=self.asked)
            names = metric_names(self.metric.config.select_by, average=average is not None)
            for i, (slot, _) in zip(compared, slots, strict=True):
                scores[i] |= zip(names, found[slot], strict=True)
        return scores

    def _preference(self, task: str, measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Returns the share of pairs that are preferred rightly, its error, and the loss that decides ties.

        Args:
            task: The trials' task.
            measured: Of the adapter, and of the first running average where that was evaluated.
        """
        pairs, scores = self.executor.plan.objective.count(self.validation[task]), dict[str, float]()
        for average, found in zip((False, True), measured, strict=False):
            name, error = metric_names("preference", average=average)
            tie, own = comparable_loss("preference", average=average), comparable_loss("preference")
            assert tie is not None and own is not None
            share = found[metric_names("preference")[0]]
            scores |= {name: share, error: error_of_share(share, pairs), tie: found[own]}
        return scores

    def rows_at_once(self, due: Sequence[tuple[int, Sequence[TokenRow]]]) -> int:
        """Rows of an evaluation batch of a device; see `evaluation_rows`."""
        executor = self.executor
        return evaluation_rows(self.exchange.capacity_rows, executor.plan.rows, executor.sharding.own_slots)

    def _decide(self, due: list[int]) -> None:
        for i in due:
            seen, wish = self.observe(self.trials[i], self.progress[i])
            self._events += [*seen, *judge(self.trials[i], self.progress[i], self.rules, wish)]
        for members in self.exchange.members.values():
            self._events += settle_rungs(
                [self.trials[i] for i in members], [self.progress[i] for i in members], self.rules
            )

    def _agree(self, better: list[int]) -> None:
        """Compares decisions with the other processes, whose devices would else wait for one another."""
        if self.hosts.processes == 1:
            return
        facts = []
        for i, (trial, progress) in enumerate(zip(self.trials, self.progress, strict=True)):
            best = ", better than before" if i in better else ""
            why = f" ({progress.reason})" if progress.reason else ""
            rungs = counted(progress.rung, "rung")
            facts.append(f"{trial.task}/{trial.name} {progress.phase}{why} after {rungs}{best}")
        self.hosts.same(f"decisions at tick {self.tick}", facts)

    def _steps(self) -> np.ndarray:
        steps = np.zeros(self.executor.plan.slots, np.int32)
        for progress in self.progress:
            if progress.slot is not None:
                steps[progress.slot] = max(progress.step - 1, 0)
        return steps


def _apart(measured: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Returns the loss of what was measured of a trial, and the objective's metrics."""
    return measured["loss"], {name: value for name, value in measured.items() if name != "loss"}
