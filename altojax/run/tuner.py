"""A tuning run from end to end: tasks in, the best adapter of each out.

Order of things, so that nothing is lost and nothing half-written:

1. Everything that can be wrong with the input is checked before the run's folder exists.
2. A checkpoint's files are written and fsynced, then the journal's row that names them, then older files go.
3. A resumed run forgets what came after its last checkpoint and decides it again, in float32 to the same end.
4. Adapters are exported when all trials have ended; an export is put in place whole or not at all.

Of several processes each computes the same. They meet where something is recorded, and after a few seconds of steps.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, astuple
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from altojax.config.tune_config import MAKES, TuneConfig, parse_bytes
from altojax.device.executor import Executor
from altojax.device.memory import Capacity, enough_tokens, evaluation_shape, plan_capacity
from altojax.device.slots import Snapshot
from altojax.early_exit.callbacks import NOBODY, Observers
from altojax.run.decisions import Observed
from altojax.run.export_adapters import finish_run
from altojax.run.live_table import TrialTable
from altojax.run.load_base import build_executor, course_of, largest_step, least_disk_bytes, smallest_step
from altojax.run.prepare import PreparedBase, PreparedRun, new_trial, prepare
from altojax.run.resume import capacity_of, held_by, is_done, plain_capacity, progress_at, resume
from altojax.run.run_identity import as_begun, differences, facts_of, given_to, identity_of, templates_of
from altojax.run.run_log import RunLog
from altojax.run.run_times import RunTimes
from altojax.run.shape_forecast import foresee_first
from altojax.run.snapshots import Snapshots
from altojax.run.train_loop import FLUSH_TICKS, TrainLoop
from altojax.run.trial import TrialProgress
from jaxlm.devices.hosts import ALONE, Hosts
from jaxlm.devices.machine import device_budget
from jaxlm.models.spec import remat_choices
from jaxrun.process.interrupt import Interrupt, StopAsked, Stopped, catch_interrupt
from jaxrun.store.journal import Checkpoint, Journal
from jaxrun.store.opening import RunOpening, day_of
from jaxrun.store.records import Event, Point, record_errors
from jaxrun.store.run_folder import JOURNAL_NAME

SLOW_SAVE_S = 1.0
"""Seconds of a checkpoint beyond which checkpoints take a tenth of the time at most."""
MEET_S = 2.0
"""Seconds of steps after which several processes meet, so that Ctrl-C on one of them is not waited for."""


class Tuner:
    """One run of ``altojax tune``."""

    def __init__(
        self,
        config: TuneConfig,
        *,
        overwrite: bool = False,
        console: Console | None = None,
        hosts: Hosts = ALONE,
        observers: Observers = NOBODY,
    ):
        """Checks the whole input; writes nothing.

        Args:
            config: The run.
            overwrite: Discard what an earlier run left in its folder.
            console: Where progress is shown.
            hosts: The processes of the run, each with a tuner of its own. The leader alone writes and shows progress.
            observers: The caller's code, which sees every evaluation; the leader's is asked.

        Raises:
            UserError: Anything wrong with models, data, target modules or search spaces, or other ones elsewhere.
        """
        self.config, self.overwrite, self.hosts, self.observers = config, overwrite, hosts, observers
        self.begun_s = time.perf_counter()
        self.run_dir = Path(config.output_dir)
        self.console = (console or Console()) if hosts.leads else Console(quiet=True)
        day = date.fromisoformat(hosts.decide(day_of(self.run_dir, overwrite=overwrite).isoformat()))
        with hosts.together():
            self.prepared: PreparedRun = prepare(config, day)
        hosts.same("config, models and data", given_to(config, self.prepared))

    def run(self, interrupt: StopAsked | None = None) -> int:
        """Trains until every trial has ended, or until interrupted; exit code 0 or 130.

        Args:
            interrupt: What asks the run to stop; None is the signals that `catch_interrupt` catches.
        """
        hosts = self.hosts
        with ExitStack() as stack:
            journal = said = None
            with hosts.together():
                if hosts.leads:
                    self.opening.check()
                if hosts.leads and (self.run_dir / JOURNAL_NAME).exists() and not self.overwrite:
                    journal = stack.enter_context(self.opening.open())
                    found = journal.last_checkpoint()
                    said = [journal.get("trials", []), None if found is None else [found.tick, found.manifest]]
            begun, told = hosts.decide(said) or ((), None)
            checkpoint = None if told is None else Checkpoint(told[0], told[1], {})
            with record_errors(self.run_dir / JOURNAL_NAME):
                self.prepared = as_begun(self.prepared, begun)
                progress = progress_at(self.prepared, checkpoint)
                bases = self.prepared.bases
                undone = [number for number, base in enumerate(bases) if not is_done(base, progress)]
                ended = checkpoint is not None and checkpoint.manifest["finished"] and not undone
            first, last = (undone[0], undone[-1]) if undone else (len(bases) - 1, len(bases) - 1)
            executor: Executor | None = None
            stack.callback(lambda: None if executor is None else executor.close())
            if not ended:
                executor = build_executor(self.config, bases[first], hosts)
                with record_errors(self.run_dir / JOURNAL_NAME):
                    known = resume(executor, checkpoint, held_by(self.config, bases[first], executor))
                capacity = known or self._plan(executor, bases[first])
                executor.recompute(capacity.remat)
            with hosts.together():
                if hosts.leads and journal is None:
                    journal = stack.enter_context(self.opening.open())
            asked = stack.enter_context(catch_interrupt()) if interrupt is None else interrupt
            screen = stack.enter_context(TrialTable(self.console, self.prepared))
            state = _State(self, journal, checkpoint, progress, screen, executor)
            if not ended:
                assert executor is not None
                for number in undone:
                    if number > first:
                        executor.close()
                        executor = None  # its arrays make room for the next base
                        executor = build_executor(self.config, bases[number], hosts)
                        capacity = self._plan(executor, bases[number])
                        executor.recompute(capacity.remat)
                    if not state.run_base(number, bases[number], executor, capacity, asked):
                        screen.say(f"interrupted; run the same command again to resume from tick {state.tick}")
                        return 130
                with hosts.together():
                    state.save(last, executor, capacity, finished=True)
                executor.close()
            finish_run(
                self.config, self.prepared, state.snapshots, state.progress, state.run_log, screen, executor, hosts
            )
            state.run_log.close()
        return 0

    @property
    def opening(self) -> RunOpening:
        """The run's folder, to check and to open."""
        return RunOpening(
            self.config,
            self.run_dir,
            identity_of(self.config, self.prepared),
            makes=(*MAKES, *(task.name for task in self.config.tasks)),
            day=self.prepared.day,
            overwrite=self.overwrite,
            differences=differences,
            report_to=self.config.report_to,
            least_bytes=sum(least_disk_bytes(self.config, base) for base in self.prepared.bases),
        )

    def _plan(self, executor: Executor, base: PreparedBase) -> Capacity:
        sharding = executor.sharding
        loads, _, course = course_of(base, executor.plan, sharding.layout)
        budget = parse_bytes(self.config.memory_budget) or min(self.hosts.gather(device_budget()))
        data = [self.prepared.data[task] for task in base.tasks]
        largest = largest_step(base, loads, course.packing, sharding.groups, sharding.own_slots)
        executor.ladders["train"].seen.append(largest)
        foresee_first(executor, base.trials, loads, largest, course.packing)
        choices = remat_choices(base.spec, base.steps(sharding.slots))
        if (enough := enough_tokens()) is not None:
            executor.foresee("eval", evaluation_shape([one.validation for one in data], executor, enough))
        with self.hosts.together():
            own = plan_capacity(executor, choices, largest, smallest_step(base, loads), budget, enough)
        plans = [capacity_of(one) for one in self.hosts.gather(plain_capacity(own))]
        return min(plans, key=lambda plan: (-choices.index(plan.remat), plan.tokens))


class _State:
    """What a running tune holds beside the executor."""

    def __init__(
        self,
        tuner: Tuner,
        journal: Journal | None,
        checkpoint: Checkpoint | None,
        progress: list[TrialProgress],
        screen: TrialTable,
        executor: Executor | None,
    ):
        self.config, self.prepared, self.hosts, self.screen = tuner.config, tuner.prepared, tuner.hosts, screen
        self.snapshots = Snapshots(tuner.run_dir)
        self.trials = [trial for base in tuner.prepared.bases for trial in base.trials]
        self.setup_s = time.perf_counter() - tuner.begun_s
        self.progress = progress
        self.tick, self.left, self.saved_samples, self.next_save_s = 0, None, 0, 0.0
        devices = None if executor is None else executor.sharding.devices
        with self.hosts.together():
            self.run_log = RunLog(tuner.config, journal, checkpoint, devices=devices)
            self.run_log.note("trials", [facts_of(trial) for trial in self.trials])
            self.run_log.note("data", {task: data.digest for task, data in tuner.prepared.data.items()})
            self.run_log.note("templates", templates_of(tuner.config, tuner.prepared))
            self.run_log.note("asking", {task: asdict(data.asking) for task, data in tuner.prepared.data.items()})
        self.observe = Observed(tuner.observers, self.run_log, self.hosts)
        if checkpoint is None:
            self.clock = RunTimes()
        else:
            with record_errors(tuner.run_dir / JOURNAL_NAME):
                manifest = checkpoint.manifest
                self.tick, self.saved_samples = checkpoint.tick, int(manifest["samples"])
                self.left = next((trial.index for trial in self.trials if trial.full_name == manifest["left"]), None)
                self.clock = RunTimes.from_dict(manifest["clock"])
                self.snapshots.restore(manifest["named"], tuner.prepared.abstract(manifest["named"]), self.hosts)
            screen.say(f"resuming from tick {self.tick}" if executor else "finished already: nothing is left to train")
        self.clock.setup_s += self.setup_s
        self.compiled: dict[str, Any] = self.run_log.noted("compiled", {"count": 0, "seconds": 0.0})
        total = sum(trial.stream.total_samples for trial in self.trials)
        every = tuner.config.checkpoint_samples
        self.every_samples = max(1, round(every * total if every < 1 else every))

    def run_base(
        self, number: int, base: PreparedBase, executor: Executor, capacity: Capacity, interrupt: StopAsked
    ) -> bool:
        """Runs all trials of one base to their end. Returns False when interrupted, after a checkpoint."""
        first = base.trials[0].index
        progress = self.progress[first : first + len(base.trials)]
        validation = {task: self.prepared.data[task].validation for task in base.tasks}
        executor.ladders["train"].most_tokens = capacity.tokens
        self.clock.here.clear()
        loop = TrainLoop(
            executor,
            base.trials,
            progress,
            validation,
            self.config.early_exit,
            self.snapshots,
            self.clock,
            capacity.tokens,
            partial(new_trial, base),
            self._record,
            self.observe,
            course_of(base, executor.plan, executor.sharding.layout)[2].packing,
            tick=self.tick,
            best_only=self.config.keep_adapters == "best",
            hosts=self.hosts,
            asked=interrupt if isinstance(interrupt, Interrupt) and self.hosts.processes == 1 else None,
        )
        loop.left = next((loop.load(t) for t in base.trials if t.index == self.left), None)
        loop.restore_slots()
        self._show(executor)
        measured = False
        while not loop.finished:
            tick, begun = loop.tick, time.perf_counter()
            with suppress(Stopped):
                if not measured:
                    self._measure_base(base, executor, loop)
                    measured = True
                with self.hosts.together():
                    self._advance(loop, executor)
            self.tick, self.left = loop.tick, None if loop.left is None else loop.left.trial
            samples = self._samples()
            asked = self._meet(loop, interrupt, (time.perf_counter() - begun) / max(loop.tick - tick, 1))
            if asked or self._is_due(samples):
                self.saved_samples = samples
                loop.flush()
                before_s = self.clock.checkpoint_s
                with self.clock.measure("checkpoint_s"):
                    live = loop.live()
                    with self.hosts.together():
                        self.save(number, executor, capacity, live=live)
                took_s = self.clock.checkpoint_s - before_s
                self.next_save_s = self.clock.elapsed_s + 9 * took_s if took_s > SLOW_SAVE_S else 0.0
                if asked:
                    return loop.finished
        with self.hosts.together():
            self._count_compiles(executor)
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
        ladders = executor.ladders.items()
        manifest = {
            "base": number,
            "finished": finished,
            "left": None if self.left is None else self.trials[self.left].full_name,
            "samples": self.saved_samples,
            "named": named,
            "held": held_by(self.config, self.prepared.bases[number], executor),
            "capacity": plain_capacity(capacity),
            "shapes": {name: [list(astuple(shape)) for shape in ladder.seen] for name, ladder in ladders},
            "coming": {name: [*astuple(one.coming[0]), one.coming[1]] for name, one in ladders if one.coming},
            "clock": self.clock.to_dict(),
            "progress": {t.full_name: p.to_dict() for t, p in zip(self.trials, self.progress, strict=True)},
        }
        self.run_log.commit(self.tick, manifest, [name for kind in named.values() for name in kind.values()])
        self._store_clock(number, executor, capacity)

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
        self.screen.show(self.trials, self.progress, self.clock, self.compiled["count"] + len(executor.compiles))

    def _is_due(self, samples: int) -> bool:
        """Whether a checkpoint is due: not so often that a run of large states spends a tenth of its time on them.

        Several processes go by samples alone, which are the same for all.
        """
        if self.hosts.processes == 1 and self.clock.elapsed_s < self.next_save_s:
            return False
        return samples // self.every_samples > self.saved_samples // self.every_samples

    def _meet(self, loop: TrainLoop, interrupt: StopAsked, tick_s: float) -> bool:
        """Says whether any process was asked to stop, and agrees when to meet again."""
        wanted = max(1, min(FLUSH_TICKS, int(MEET_S / tick_s)))
        said = self.hosts.gather([interrupt.requested, wanted])
        if self.hosts.processes > 1:
            loop.most_flying = said[0][1]
        return any(asked for asked, _ in said)

    def _measure_base(self, base: PreparedBase, executor: Executor, loop: TrainLoop) -> None:
        known = self.hosts.decide([event.task for event in self.run_log.events("base_loss")])
        for task in base.tasks:
            if task in known:
                continue
            due = [(0, loop.validation[task])]
            loss = executor.evaluate(due, loop.rows_at_once(due), asked=loop.asked)[0]
            point = Point(task, None, 0, 0, 0, "base", loss, None, round(self.clock.elapsed_s, 3))
            with self.hosts.together():
                self._record(self.tick, [Event("base_loss", task, None, {"loss": loss})], [point])

    def _record(self, tick: int, events: list[Event], points: list[Point]) -> None:
        self.run_log.add(tick, events, points)
        self.screen.tell(events)

    def _store_clock(self, number: int, executor: Executor, capacity: Capacity) -> None:
        compiled = self._compiled_so_far(executor)
        self.run_log.note("compiled", compiled)
        self.run_log.note(
            "clock",
            {
                **self.clock.told(),
                "compiles": compiled["count"],
                "compile_s": compiled["seconds"],
                "devices": executor.sharding.devices,
                "base": number,
                "setup_s": self.setup_s,
                "capacity_tokens": capacity.tokens,
                "remat": capacity.remat.remat,
                "resident_bytes": capacity.resident_bytes,
            },
        )

    def _count_compiles(self, executor: Executor) -> None:
        self.compiled = self._compiled_so_far(executor)
        self.run_log.note("compiled", self.compiled)
        executor.compiles.clear()
        executor.compile_s = 0.0

    def _compiled_so_far(self, executor: Executor) -> dict[str, Any]:
        count, seconds = self.compiled["count"], self.compiled["seconds"]
        return {"count": count + len(executor.compiles), "seconds": seconds + executor.compile_s}
