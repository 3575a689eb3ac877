"""Runs the loop over a base and saves as it goes, so that nothing is lost and nothing half-written."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from altojax.config.objectives import PREFERENCE_KEYS, preference_numbers, same_loss
from altojax.config.tune_config import TuneConfig, rules_of
from altojax.device.executor import Executor
from altojax.device.memory import Capacity, parking_places
from altojax.device.objectives.objective import Settled
from altojax.device.slots import Snapshot
from altojax.early_exit.callbacks import Observers
from altojax.estimates.metric_price import over_budget
from altojax.run.checkpoint import held_by, named_in, plain_capacity, plain_variant
from altojax.run.decisions import Observed
from altojax.run.live_table import TrialTable
from altojax.run.loop.reference import fill_references
from altojax.run.loop.scoring import Grade
from altojax.run.loop.slot_exchange import SlotExchange
from altojax.run.loop.starts import begin_adopted, new_trial, start_arrays
from altojax.run.loop.task_metric import TaskMetric
from altojax.run.loop.train_loop import FLUSH_TICKS, TrainLoop
from altojax.run.prepare import PreparedBase, PreparedRun
from altojax.run.results.measure_held_out import note_capacity
from altojax.run.results.write_adapters import AdapterWriter
from altojax.run.run_identity import facts_of, templates_of
from altojax.run.run_times import RunTimes
from altojax.run.snapshots import Snapshots, on_host
from altojax.run.tasks.search import proposed
from altojax.run.trial import Trial, TrialProgress
from jaxlm.devices.hosts import Hosts
from jaxlm.devices.machine import MARGIN, whereabouts
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import Interrupt, StopAsked, Stopped
from jaxrun.store.journal import Checkpoint, Journal
from jaxrun.store.records import Event, Point, record_errors
from jaxrun.store.run_folder import JOURNAL_NAME
from jaxrun.store.run_log import RunLog, is_checkpointed
from jaxrun.store.save_pace import SavePace
from jaxrun.terminal.sizes import counted

SAVING = 0.1
"""Of the time, at most, for checkpoints that are slow, however often the config wants them."""
SLOW_SAVE_S = 1.0
"""Seconds beyond which a checkpoint is slow."""
MEET_S = 2.0
"""Seconds of steps after which several processes meet, so that Ctrl-C on one of them is not waited for."""


class CheckpointedRun:
    """A tune as it runs, from one checkpoint to the next: all that it holds beside the executor."""

    def __init__(
        self,
        config: TuneConfig,
        prepared: PreparedRun,
        hosts: Hosts,
        observers: Observers,
        screen: TrialTable,
        journal: Journal | None,
        checkpoint: Checkpoint | None,
        progress: list[TrialProgress],
        begun_s: float,
        *,
        devices: int | None,
        grade: Grade | None = None,
    ):
        """Resumes from a checkpoint.

        Args:
            config: The run.
            prepared: What it works on.
            hosts: Its processes.
            observers: The caller's code.
            screen: Where progress is shown.
            journal: Where it is recorded; the leader's alone.
            checkpoint: Where to resume; None begins.
            progress: Of all trials, in their order, at the checkpoint.
            begun_s: When the program began, by `time.perf_counter`.
            devices: That train; None where nothing is left to train.
            grade: Scores answers, where code of the user's does.

        Raises:
            UserError: The checkpoint is damaged.
        """
        self.config, self.prepared, self.hosts, self.screen, self.grade = config, prepared, hosts, screen, grade
        run_dir = Path(config.output_dir)
        self.snapshots = Snapshots(run_dir)
        writes = hosts.leads and config.keep_adapters == "all"
        self.writer = AdapterWriter(run_dir, prepared, self.snapshots, progress) if writes else None
        self.setup_s = time.perf_counter() - begun_s
        self.progress = progress
        self.tick, self.left, self.saved_samples = 0, None, 0
        self.pace = SavePace(SAVING)
        with self.hosts.together():
            start, ended = whereabouts(devices), devices is None
            self.run_log = RunLog(config, journal, checkpoint, start, report_to=config.report_to, ended=ended)
            self.run_log.note("result", config.result)
            self.run_log.note("select_by", config.select_by)
            self.run_log.note("trials", [facts_of(trial) for trial in self.trials])
            self.run_log.note("data", {task: data.digest for task, data in prepared.data.items()})
            self.run_log.note("templates", templates_of(config, prepared))
            self.run_log.note("asking", {task: asdict(data.asking) for task, data in prepared.data.items()})
        self.observe = Observed(observers, self.run_log, hosts)
        if checkpoint is None:
            self.clock = RunTimes()
        else:
            with record_errors(run_dir / JOURNAL_NAME):
                manifest = checkpoint.manifest
                self.tick, self.saved_samples = checkpoint.tick, int(manifest["samples"])
                self.left = next((trial.index for trial in self.trials if trial.full_name == manifest["left"]), None)
                self.clock = RunTimes.from_dict(manifest["clock"])
                named = named_in(manifest, {one.full_name for base in prepared.bases for one in base.trials})
            configs = {trial.full_name: base.config for base in prepared.bases for trial in base.trials}
            self.snapshots.restore(named, prepared.abstract(named), configs, self.hosts)
            screen.say(f"resuming from tick {self.tick}" if devices else "finished already: nothing is left to train")
        self.clock.setup_s += self.setup_s
        self.compiled: dict[str, Any] = self.run_log.noted("compiled", {"count": 0, "seconds": 0.0})
        self.compiled_before = self.compiled
        total = sum(trial.stream.total_samples for trial in self.trials)
        every = config.checkpoint_samples
        self.every_samples = max(1, round(every * total if every < 1 else every))

    @property
    def trials(self) -> list[Trial]:
        """All trials as they are now, in their order."""
        return [trial for base in self.prepared.bases for trial in base.trials]

    def run_base(self, number: int, executor: Executor, capacity: Capacity, interrupt: StopAsked) -> bool:
        """Runs all trials of one base to their end. Returns False when interrupted, after a checkpoint."""
        base = self.prepared.bases[number]
        first, by_preference = base.trials[0].index, base.objective == "dpo"
        self.clock.here.clear()
        with self.hosts.together():
            note_capacity(base, capacity.rows, self.run_log)
        self.compiled_before = self.compiled
        places = parking_places(executor, capacity, len(base.trials) - executor.sharding.slots)
        executor.make_places(places)
        exchange = SlotExchange(
            executor,
            base.trials,
            self.progress[first : first + len(base.trials)],
            self.snapshots,
            self.clock,
            capacity.rows,
            partial(new_trial, base, self._best_adapter),
            partial(begin_adopted, self.prepared.bases, number, self.progress) if self._adopts else list,
            # By a metric a trial that has ended may become the best: its adapter is kept until the end.
            best_only=self.config.keep_adapters == "best" and self.config.select_by == "loss" and not by_preference,
            searches=base.searches,
            hosts=self.hosts,
            places=places,
        )
        loop = TrainLoop(
            exchange,
            {task: self.prepared.data[task].validation for task in base.tasks},
            rules_of(self.config, base.objective),
            self._record,
            self.observe,
            result=self.config.result,
            metric=self._metric(base, executor, capacity, places),
            by_preference=by_preference,
            measures_averages=self.config.measures_averages,
            tick=self.tick,
            hosts=self.hosts,
            asked=interrupt if isinstance(interrupt, Interrupt) and self.hosts.processes == 1 else None,
        )
        try:
            self._fill_references(base, executor, loop)
        except Stopped:
            return False
        exchange.restore(self.left)
        self._show(executor)
        budget = self.config.select_by, self.config.metric_budget
        measured = False
        while not loop.finished:
            tick, begun = loop.tick, time.perf_counter()
            with suppress(Stopped):
                if not measured:
                    self._measure_base(base, executor, loop)
                    measured = True
                with self.hosts.together():
                    self._advance(loop, executor)
            self.tick, self.left = loop.tick, None if exchange.left is None else exchange.left.trial
            if self.writer is not None:
                self.writer.advance(base)
            samples = self._samples()
            asked = self._meet(loop, interrupt, (time.perf_counter() - begun) / max(loop.tick - tick, 1))
            if asked or self._is_due(samples):
                self.saved_samples = samples
                loop.flush()
                if asked and self.writer is not None:
                    self.writer.finish(interrupt)
                before_s = self.clock.checkpoint_s
                with self.clock.measure("checkpoint_s"):
                    live = exchange.live()
                    with self.hosts.together():
                        self.save(number, executor, capacity, live=live)
                took_s = self.clock.checkpoint_s - before_s
                self.pace.saved(self.clock.elapsed_s, took_s if took_s > SLOW_SAVE_S else 0.0)
                if asked:
                    self.snapshots.bring_home()
                    return loop.finished
        if self.writer is not None:
            self.writer.finish(interrupt)
        self.snapshots.bring_home()
        self._count_compiles(executor)
        with self.hosts.together():
            self.run_log.note("compiled", self.compiled)
        if line := over_budget(*budget, self.clock.metric_s, self.clock.training_s):
            self.screen.say(line)
        return True

    def save(
        self,
        number: int,
        executor: Executor,
        capacity: Capacity,
        *,
        live: Mapping[str, Snapshot] | None = None,
        finished: bool = False,
    ) -> None:
        """Writes a checkpoint: files first, then the row that names them, then what it replaced goes."""
        if not self.hosts.leads:
            return
        named = self.snapshots.save(self.tick, live or {})
        manifest = {
            "base": number,
            "finished": finished,
            "left": None if self.left is None else self.trials[self.left].full_name,
            "samples": self.saved_samples,
            "named": named,
            "held": held_by(self.config, self.prepared.bases[number], executor),
            "variant": plain_variant(executor.variant),
            "capacity": plain_capacity(capacity),
            **executor.programs.shapes(),
            "clock": self.clock.to_dict(),
            "proposed": proposed(self.trials),
            "progress": {t.full_name: p.to_dict() for t, p in zip(self.trials, self.progress, strict=True)},
        }
        folders = [name for kind in named.values() for name in kind.values()]
        self.run_log.commit(self.tick, manifest, list(filter(is_checkpointed, folders)))
        self._store_clock(number, executor, capacity)

    @property
    def _adopts(self) -> bool:
        """Whether any task waits for another."""
        return any(task.waits_for is not None for task in self.config.tasks)

    def _best_adapter(self, trial: str) -> Mapping[str, Mapping[str, Any]]:
        if not self.snapshots.has("best", trial):
            raise UserError(f"{self.config.output_dir}/{trial}: no adapter here any more, from which others start")
        found: Mapping[str, Mapping[str, Any]] = on_host(self.snapshots.get("best", trial))
        return found

    def _advance(self, loop: TrainLoop, executor: Executor) -> None:
        """Takes a step, or where there are several processes, steps until they meet."""
        while True:
            loop.advance()
            self._show(executor)
            if self.hosts.processes == 1 or loop.met or self._is_due(self._samples()):
                return

    def _samples(self) -> int:
        return sum(t.stream.samples_after(p.step) for t, p in zip(self.trials, self.progress, strict=True))

    def _show(self, executor: Executor) -> None:
        self._count_compiles(executor)
        self.screen.show(self.trials, self.progress, self.clock, self.compiled["count"])

    def _is_due(self, samples: int) -> bool:
        """Whether a checkpoint is due: not so often that a run of large states spends a tenth of its time on them.

        Several processes go by samples alone, which are the same for all.
        """
        if self.hosts.processes == 1 and not self.pace.due(self.clock.elapsed_s):
            return False
        return samples // self.every_samples > self.saved_samples // self.every_samples

    def _meet(self, loop: TrainLoop, interrupt: StopAsked, tick_s: float) -> bool:
        """Says whether any process was asked to stop, and agrees when to meet again."""
        wanted = max(1, min(FLUSH_TICKS, int(MEET_S / tick_s)))
        said = self.hosts.gather([interrupt.requested, wanted])
        if self.hosts.processes > 1:
            loop.most_flying = said[0][1]
        return any(asked for asked, _ in said)

    def _metric(self, base: PreparedBase, executor: Executor, capacity: Capacity, places: int) -> TaskMetric | None:
        questions = {task: found for task in base.tasks if (found := self.prepared.data[task].questions)}
        if not questions:
            return None
        # Beside what the run keeps for itself.
        room = int(capacity.budget_bytes * (1 - MARGIN)) - capacity.resident_bytes - places * executor.place_bytes
        tools = base.tokenizers, self.clock, room, self.grade, self.hosts
        return TaskMetric(self.config, executor, questions, *tools)

    def _fill_references(self, base: PreparedBase, executor: Executor, loop: TrainLoop) -> None:
        """Computes what trials of pairs are compared with, or reads it."""
        for task in base.tasks:
            data = self.prepared.data[task]
            at_once = loop.rows_at_once([(0, data.rows)])
            one = next(trial for trial in base.trials if trial.task == task)
            if one.start is not None and not one.start.known:  # no trial of the task will begin
                continue
            start = None if one.start is None else (start_arrays(one.start, self._best_adapter), one.config.scale)
            kinds = executor, at_once, self.hosts, loop.asked, start
            with self.clock.measure("evaluation_s"):
                if fill_references(Path(self.config.output_dir), base, task, data, *kinds):
                    answers = counted(len(data.rows), "answer")
                    self.screen.say(f"{task}: computed log-probabilities of {answers} under the reference")

    def _measure_base(self, base: PreparedBase, executor: Executor, loop: TrainLoop) -> None:
        known = self.hosts.decide([event.task for event in self.run_log.events("base_loss")])
        for task in base.tasks:
            if task in known:
                continue
            own = [trial for trial in base.trials if trial.task == task]
            executor.put(0, {"adapters": {}, "steps": 0}, own[0].hyper())
            due = [(0, loop.validation[task])]
            at_once = loop.rows_at_once(due)
            payload: dict[str, Any]
            if isinstance(objective := executor.plan.objective, Settled):
                losses = executor.row_losses(due, at_once, asked=loop.asked)[0]
                payload = _base_losses(own, partial(objective.mean_loss, due[0][1], losses))
            else:
                payload = {"loss": executor.evaluate(due, at_once, asked=loop.asked)[0]}
            if loop.metric is not None:
                found = loop.metric.measure([(0, task)], loop.rows_at_once, asked=loop.asked)[0]
                payload |= {"select_by": self.config.select_by, "metric": found[0], "metric_error": found[1]}
            point = Point(task, None, 0, 0, 0, "base", payload["loss"], None, round(self.clock.elapsed_s, 3))
            with self.hosts.together():
                self._record(self.tick, [Event("base_loss", task, None, payload)], [point])

    def _record(self, tick: int, events: list[Event], points: list[Point]) -> None:
        self.run_log.add(tick, events, points)
        if any(event.kind in ("propose", "adopt") for event in events):
            self.run_log.note("trials", [facts_of(trial) for trial in self.trials])
        self.screen.report(events)

    def _store_clock(self, number: int, executor: Executor, capacity: Capacity) -> None:
        self._count_compiles(executor)
        self.run_log.note("compiled", self.compiled)
        self.run_log.note(
            "clock",
            {
                **self.clock.summary(),
                "compiles": self.compiled["count"],
                "compile_s": self.compiled["seconds"],
                "devices": executor.sharding.devices,
                "base": number,
                "setup_s": self.setup_s,
                "capacity_tokens": capacity.rows * executor.plan.rows.length,
                "remat": capacity.remat.remat,
                "resident_bytes": capacity.resident_bytes,
            },
        )

    def _count_compiles(self, executor: Executor) -> None:
        """Adds the compilations of this base's executor to those before it."""
        stats, before = executor.programs.stats(), self.compiled_before
        self.compiled = {
            "count": before["count"] + len(stats.done),
            "seconds": before["seconds"] + stats.waited_s,
        }


def _base_losses(trials: Sequence[Trial], loss_of: Callable[[Mapping[str, float]], float]) -> dict[str, Any]:
    """Returns the loss of the base by that of the first trial, and by each that any trial has which is known."""
    found: list[dict[str, Any]] = []
    for trial in trials:
        own = {key: value for key, value in trial.settings.items() if key in PREFERENCE_KEYS}
        known = not trial.proposed or trial.around is not None
        if known and not any(same_loss(one["of"], own) for one in found):
            found.append({"of": own, "loss": loss_of(preference_numbers(trial.config))})
    return {"loss": found[0]["loss"], "by_loss": found}
