"""The loop over one base: fill slots, step, evaluate, decide, record.

A tick is a micro-batch of every trial at work: one training step of all slots, or several where unlike ones go apart.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from altojax.device.batch import Part, TokenRow, next_part
from altojax.device.batch_shapes import Shape
from altojax.device.executor import IN_FLIGHT, Executor
from altojax.device.memory import evaluation_rows
from altojax.device.optimizer import learning_rate
from altojax.device.slots import Snapshot
from altojax.device.step import StepReport
from altojax.early_exit.rules import Rules
from altojax.packing.slot_admission import TOGETHER, Load, Packing, admit, steps_of
from altojax.run.decisions import is_due, judge, record_evaluation, settle_rungs
from altojax.run.run_times import RunTimes
from altojax.run.shape_forecast import Runner, apart, forecast
from altojax.run.snapshots import Snapshots
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
        executor: The device side.
        trials: All trials of this base.
        progress: Of the same trials.
        validation: Validation rows by task.
        rules: The trend rules.
        snapshots: Parked states and best adapters.
        clock: Times and speeds.
        capacity_tokens: rows · length that a step may hold on a device.
        new_trial: Makes the snapshot of a trial that has not begun.
        record: Called with a tick and its events and points.
        observe: Called with a trial that was evaluated; returns what to record of it and why it is to end, or None.
        packing: How trials of unlike lengths share the devices.
        tick: Ticks done in the run.
        left: The trial that left a slot last, where that slot is still free.
        best_only: Whether nothing is kept of an ended trial that is not the best of its task.
        hosts: The processes of the run, each with a loop of its own.
        most_flying: Steps that may be in flight before their losses are fetched.
        asked: What says that the run is to stop; None where several processes must agree on it first.
        met: Whether the last tick fetched or recorded something, which it then did on all processes.
    """

    executor: Executor
    trials: Sequence[Trial]
    progress: Sequence[TrialProgress]
    validation: dict[str, Sequence[TokenRow]]
    rules: Rules
    snapshots: Snapshots
    clock: RunTimes
    capacity_tokens: int
    new_trial: Callable[[Trial], Snapshot]
    record: Callable[[int, list[Event], list[Point]], None]
    observe: Callable[[Trial, TrialProgress], tuple[list[Event], str | None]]
    packing: Packing = TOGETHER
    tick: int = 0
    left: Load | None = None
    best_only: bool = False
    hosts: Hosts = ALONE
    most_flying: int = FLUSH_TICKS
    asked: StopAsked | None = None
    met: bool = False
    _events: list[Event] = field(default_factory=list)
    _points: list[Point] = field(default_factory=list)
    _members: dict[str, list[int]] = field(default_factory=dict)
    _ahead: set[int] = field(default_factory=set)
    _flying: list[tuple[StepReport, list[tuple[int, int, bool]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Compiles the learning rate, which is reported with every evaluation."""
        self._learning_rate = jax.jit(learning_rate)
        for i, trial in enumerate(self.trials):
            self._members.setdefault(trial.task, []).append(i)

    @property
    def finished(self) -> bool:
        """Whether every trial has ended."""
        return all(progress.phase == "done" for progress in self.progress)

    @property
    def samples(self) -> int:
        """Samples trained on so far, over all trials."""
        pairs = zip(self.trials, self.progress, strict=True)
        return sum(t.stream.samples_after(p.step) + p.micro * t.config.batch_size for t, p in pairs)

    def advance(self) -> None:
        """One tick.

        Every running trial takes one micro-batch; those due are evaluated and judged; the journal records it.

        Raises:
            UserError: Another process decided otherwise, or the journal cannot be written.
            Stopped: It was asked to, before the tick or between its steps and their evaluation, which then comes first.
        """
        self.fill_slots()
        due = self._due()
        if not due:
            self._train()
            due = self._due()
        if due or len(self._flying) >= self.most_flying:
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
                self._take_out(better)
        self.met = not self._flying or bool(self._events)
        self._tell()

    def _tell(self) -> None:
        """Records what has happened until this tick."""
        if self._events or self._points:
            events, points, self._events, self._points = self._events, self._points, [], []
            self.record(self.tick, events, points)

    def fill_slots(self) -> None:
        """Gives free slots to waiting trials."""
        self._make_way()
        sharding = self.executor.sharding
        free: list[list[int]] = [[] for _ in range(sharding.groups)]
        running: list[list[Load]] = [[] for _ in range(sharding.groups)]
        taken = {p.slot for p in self.progress if p.slot is not None}
        for slot in range(sharding.slots):
            if slot not in taken:
                free[sharding.group(slot)].append(slot)
        waiting = [self.load(t) for t, p in zip(self.trials, self.progress, strict=True) if p.phase == "waiting"]
        if not any(free) or not waiting:
            return
        for trial, progress in zip(self.trials, self.progress, strict=True):
            if progress.slot is not None:
                running[sharding.group(progress.slot)].append(self.load(trial))
        offset = self.trials[0].index
        counts = [len(slots) for slots in free]
        with self.clock.measure("exchange_s"):
            for load, group in admit(waiting, running, counts, self.capacity_tokens, self.left, self.packing):
                self._enter(load.trial - offset, free[group].pop(0))
        self.left = None

    def load(self, trial: Trial) -> Load:
        """What a trial adds to a step of a device."""
        return replace(trial.load, rows=-(-trial.load.rows // self.executor.sharding.replicas))

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

    def live(self) -> dict[str, Snapshot]:
        """Copies the state of every trial in a slot to the host, and the best adapters that are not there yet."""
        for i in sorted(self._ahead):
            self._bring_home(i)
        return {self.trials[i].full_name: self._take(i) for i, one in enumerate(self.progress) if one.slot is not None}

    def restore_slots(self) -> None:
        """Puts every trial that was in a slot at the checkpoint back into the same one.

        Where this run has fewer slots than that one, trials that had a higher one wait for their turn.
        """
        for i, (trial, progress) in enumerate(zip(self.trials, self.progress, strict=True)):
            name = self.trials[i].full_name
            if progress.slot is not None and progress.slot >= self.executor.sharding.slots:
                self._note("park", i)
                progress.slot = None
                progress.phase = "waiting" if progress.phase == "running" else progress.phase
            elif progress.slot is not None:
                self.executor.put(progress.slot, self.snapshots.get("state", name), trial.hyper())
                self.snapshots.drop("state", name)

    def _enter(self, i: int, slot: int) -> None:
        trial, progress, name = self.trials[i], self.progress[i], self.trials[i].full_name
        resumed = self.snapshots.has("state", name)
        snapshot = self.snapshots.get("state", name) if resumed else self.new_trial(trial)
        self.executor.put(slot, snapshot, trial.hyper())
        self.snapshots.drop("state", name)
        progress.slot, progress.phase = slot, "running"
        self._note("resume" if resumed else "start", i)

    def _train(self) -> None:
        steps = self._together()
        if self.tick % LOOK_TICKS == 0 and self.executor.ladders["train"].looks():
            self._look_ahead(steps)
        batches = [self._next(trials) for trials in steps]
        for _, shape in batches:
            compiling = time.perf_counter()
            # Who has come or gone is recorded with the tick that follows, so that one is not given up.
            self.executor.compiled("train", shape, None if self._events else self.asked)
            self.clock.leave_out(time.perf_counter() - compiling)
        for trials, (parts, shape) in zip(steps, batches, strict=True):
            self._step(trials, parts, shape)
        self.tick += 1

    def _together(self) -> list[list[int]]:
        """Returns the trials at work, by the training steps that they take together."""
        sharding, first = self.executor.sharding, self.trials[0].index
        groups: list[list[Load]] = [[] for _ in range(sharding.groups)]
        for i in self._running():
            groups[sharding.group(self._slot(i))].append(self.load(self.trials[i]))
        steps = steps_of(groups, self.packing, self.capacity_tokens)
        return [sorted(load.trial - first for group in step for load in group) for step in steps]

    def _next(self, trials: Sequence[int]) -> tuple[list[Part], Shape]:
        """Returns what trials bring to their next training step, and its shape."""
        begun = time.perf_counter()
        parts = []
        for i in trials:
            trial, progress = self.trials[i], self.progress[i]
            parts.append(next_part(self._slot(i), trial.stream, trial.seed, progress.step, progress.micro))
        shape = self.executor.shape_of("train", parts)
        self.clock.add("host_s", time.perf_counter() - begun)
        return parts, shape

    def _step(self, trials: Sequence[int], parts: Sequence[Part], shape: Shape) -> None:
        """One training step, of these trials."""
        begun = time.perf_counter()
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
        samples = sum(len(part.rows) for part in parts)
        self.clock.count_step(samples, shape.tokens, tokens, [self.executor.tokens_alone(part) for part in parts])
        jax.block_until_ready(self._flying[-IN_FLIGHT:][0][0].loss)

    def _look_ahead(self, steps: Sequence[Sequence[int]]) -> None:
        runners = [Runner(self.trials[i], self.progress[i], self._slot(i)) for i in self._running()]
        waiting = any(progress.phase == "waiting" for progress in self.progress)
        ahead, times = forecast(runners, self.executor.ladders["train"].reach(), waiting=waiting)
        together = [{self._slot(i) for i in trials} for trials in steps]
        self.executor.look("train", apart(ahead, together), times)

    def _running(self) -> list[int]:
        return [i for i, one in enumerate(self.progress) if one.phase == "running" and one.slot is not None]

    def _due(self) -> list[int]:
        """Returns the trials that have come to an evaluation and not had it."""
        return [i for i in self._running() if is_due(self.trials[i], self.progress[i])]

    def _evaluate(self, due: list[int]) -> list[int]:
        """Evaluates trials, and returns those that were never better."""
        slots = [(self._slot(i), self.validation[self.trials[i].task]) for i in due]
        compiled_s = self.executor.compile_s
        again = [sum(step > self.progress[i].step for step in self.trials[i].eval_steps) for i in due]
        with self.clock.measure("evaluation_s"):
            losses = self.executor.evaluate(
                slots, self.rows_at_once(slots), again=sum(again) / len(again), asked=self.asked
            )
        self.clock.add("evaluation_s", compiled_s - self.executor.compile_s)
        hyper = self.executor.hyper
        rates = np.asarray(self._learning_rate(hyper, self._steps()))
        better = []
        for i, (slot, _) in zip(due, slots, strict=True):
            trial, progress = self.trials[i], self.progress[i]
            if record_evaluation(trial, progress, losses[slot]):
                better.append(i)
            at = trial.task, trial.name, progress.step, trial.stream.samples_after(progress.step), progress.tokens
            now_s = round(self.clock.elapsed_s, 3)
            train = Point(*at, "train", progress.train_loss[-1], float(rates[slot]), now_s, progress.grad_norm)
            self._points += [train, Point(*at, "validation", progress.val_loss[-1], None, now_s)]
        return better

    def rows_at_once(self, due: Sequence[tuple[int, Sequence[TokenRow]]]) -> int:
        """Rows of an evaluation batch of a device; see `evaluation_rows`."""
        longest = max(len(row.tokens) for _, rows in due for row in rows)
        return evaluation_rows(self.capacity_tokens, longest, self.executor.sharding.own_slots)

    def _decide(self, due: list[int]) -> None:
        for i in due:
            told, wish = self.observe(self.trials[i], self.progress[i])
            self._events += [*told, *judge(self.trials[i], self.progress[i], self.rules, wish)]
        for members in self._members.values():
            self._events += settle_rungs(
                [self.trials[i] for i in members], [self.progress[i] for i in members], self.rules
            )

    def _agree(self, better: list[int]) -> None:
        """Compares what was decided with the other processes, whose devices would else wait for one another."""
        if self.hosts.processes == 1:
            return
        facts = []
        for i, (trial, progress) in enumerate(zip(self.trials, self.progress, strict=True)):
            best = ", better than before" if i in better else ""
            why = f" ({progress.reason})" if progress.reason else ""
            rungs = counted(progress.rung, "rung")
            facts.append(f"{trial.task}/{trial.name} {progress.phase}{why} after {rungs}{best}")
        self.hosts.same(f"decisions at tick {self.tick}", facts)

    def _take_out(self, better: list[int]) -> None:
        """Keeps the adapters that are better than before, and clears the slots of trials that ended."""
        if better:
            self.executor.keep([self._slot(i) for i in better])
            self._ahead.update(better)
        leaders = {min(own, key=lambda j: (self.progress[j].best_loss, j)) for own in self._members.values()}
        for i, progress in enumerate(self.progress):
            name = self.trials[i].full_name
            if progress.phase == "done":
                self.snapshots.drop("state", name)
                if self.best_only and i not in leaders:
                    self.snapshots.drop("best", name)
                    self._ahead.discard(i)
            if progress.slot is not None and progress.phase == "done":
                self._leave(i)

    def _make_way(self) -> None:
        """Parks the trials that wait at a rung where others wait for a slot; else they stay where they are."""
        if not any(progress.phase == "waiting" for progress in self.progress):
            return
        with self.clock.measure("exchange_s"):
            for i, progress in enumerate(self.progress):
                if progress.slot is not None and progress.phase == "rung":
                    self.snapshots.put("state", self.trials[i].full_name, self._take(i))
                    self._note("park", i)
                    self._leave(i)

    def _leave(self, i: int) -> None:
        """Takes what is needed of a trial out of its slot, and clears it."""
        if i in self._ahead:
            self._bring_home(i)
        self.left = self.load(self.trials[i])
        self.executor.clear(self._slot(i))
        self.progress[i].slot = None

    def _bring_home(self, i: int) -> None:
        """Copies a trial's best adapter, which lies on the device, to the snapshots."""
        trial, rank = self.trials[i], self.trials[i].config.lora_rank
        self.snapshots.put("best", trial.full_name, self.executor.kept(self._slot(i), rank, trial.keys))
        self._ahead.discard(i)

    def _take(self, i: int) -> Snapshot:
        """Copies a trial at rest. What is gathered for others that accumulate is nothing of one that does not."""
        trial = self.trials[i]
        snapshot = self.executor.take(self._slot(i), trial.config.lora_rank, trial.keys)
        return {name: part for name, part in snapshot.items() if trial.accumulates or name != "gathered"}

    def _slot(self, i: int) -> int:
        slot = self.progress[i].slot
        assert slot is not None
        return slot

    def _steps(self) -> np.ndarray:
        steps = np.zeros(self.executor.plan.slots, np.int32)
        for progress in self.progress:
            if progress.slot is not None:
                steps[progress.slot] = max(progress.step - 1, 0)
        return steps

    def _note(self, kind: str, i: int, **more: Any) -> None:
        trial, progress = self.trials[i], self.progress[i]
        samples = trial.stream.samples_after(progress.step)
        payload = {"slot": progress.slot, "step": progress.step, "samples": samples, **more}
        self._events.append(Event(kind, trial.task, trial.name, payload))
