"""The main job from end to end: tasks in, the best adapter of each out.

Order of things, so that nothing is lost and nothing half-written:

1. Everything that can be wrong with the input is checked before the run's folder exists.
2. A checkpoint's files are written and fsynced, then the journal's row that names them, then older files go.
3. A resumed run forgets what came after its last checkpoint and decides it again, to the same end.
4. Adapters are exported when all trials have ended; an export is put in place whole or not at all.
"""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from altojax.batch import Shape, round_rows
from altojax.clock import Clock
from altojax.executor import Executor
from altojax.finish import finish_run
from altojax.memory import Capacity, plan_capacity
from altojax.packing import widest
from altojax.race import Race
from altojax.screen import Screen
from altojax.search import TuneConfig, parse_bytes
from altojax.setup import Base, Prepared, build_executor, new_trial, prepare
from altojax.trial import Progress
from altojax.vault import FOLDER, Vault
from backbone.machine import device_budget, whereabouts
from backbone.spec import Remat, remat_choices
from harness.interrupt import Interrupt, catch_interrupt
from harness.journal import Checkpoint, Journal
from harness.metrics import MetricsLog
from harness.opening import open_run
from harness.records import Event, Point
from harness.trackers import make_trackers

MAKES = ("config.yaml", "metrics.jsonl", "trials.csv", "report.html", "plots", "checkpoints", "tensorboard", "wandb")


class Tuner:
    """One run of ``altojax tune``."""

    def __init__(self, config: TuneConfig, *, overwrite: bool = False, console: Console | None = None):
        """Checks the whole input; writes nothing.

        Args:
            config: The run.
            overwrite: Discard what an earlier run left in its folder.
            console: Where progress is shown.

        Raises:
            UserError: Anything wrong with models, data, target modules or search spaces.
        """
        self.config, self.overwrite = config, overwrite
        self.run_dir = Path(config.output_dir)
        self.console = console or Console()
        self.prepared: Prepared = prepare(config)

    def run(self) -> int:
        """Trains until every trial has ended, or until interrupted; exit code 0 or 130."""
        resuming = (self.run_dir / "journal.db").exists() and not self.overwrite
        journal = self._open_journal() if resuming else None
        checkpoint = journal.last_checkpoint() if journal is not None else None
        first = checkpoint.manifest["base"] if checkpoint is not None else 0
        ended = checkpoint is not None and checkpoint.manifest["finished"]
        executor = None
        if not ended:
            base = self.prepared.bases[first]
            executor = build_executor(self.config, base, seen=_shapes(checkpoint))
            capacity = _capacity(checkpoint) or self._plan(executor, base)
            executor.recompute(capacity.remat)
        if journal is None:
            journal = self._open_journal()
        with journal, catch_interrupt() as interrupt, Screen(self.console, self.prepared) as screen:
            state = _State(self, journal, checkpoint, screen)
            if not ended:
                assert executor is not None
                for number in range(first, len(self.prepared.bases)):
                    base = self.prepared.bases[number]
                    if number > first:
                        executor = build_executor(self.config, base, seen={})
                        capacity = self._plan(executor, base)
                    if not state.run_base(number, base, executor, capacity, interrupt):
                        screen.say(f"interrupted; run the same command again to go on from tick {state.tick}")
                        return 130
                state.save(len(self.prepared.bases) - 1, executor, capacity, finished=True)
            finish_run(self.config, self.prepared, state.vault, state.progress, journal, screen, executor)
            state.close()
        return 0

    def _open_journal(self) -> Journal:
        digests = [data.digest for data in self.prepared.data.values()]
        names = tuple(task.name for task in self.config.tasks)
        return open_run(
            self.config, self.run_dir, digests, makes=(*MAKES, *names), overwrite=self.overwrite, aside=["mesh"]
        )

    def _plan(self, executor: Executor, base: Base) -> Capacity:
        spread = executor.spread
        loads = [replace(trial.load, rows=-(-trial.load.rows // spread.replicas)) for trial in base.trials]
        rows, length = widest(loads, spread.groups, spread.own_slots)
        smallest = min(load.rows for load in loads)
        budget = parse_bytes(self.config.memory_budget) or device_budget()
        share = max(data.target_share for data in self.prepared.data.values())
        largest = _shape(round_rows(rows, spread.own_slots), length, share)
        executor.ladders["train"].seen.append(largest)
        return plan_capacity(executor, remat_choices(base.spec), largest, _shape(smallest, length, share), budget)


class _State:
    """What a running tune holds beside the executor."""

    def __init__(self, tuner: Tuner, journal: Journal, checkpoint: Checkpoint | None, screen: Screen):
        self.config, self.prepared, self.journal, self.screen = tuner.config, tuner.prepared, journal, screen
        self.vault = Vault(tuner.run_dir)
        self.metrics = MetricsLog(tuner.run_dir, journal)
        self.trials = [trial for base in tuner.prepared.bases for trial in base.trials]
        self.tick, self.left, self.saved_samples = 0, None, 0
        if checkpoint is None:
            self.clock = Clock()
            self.progress = [Progress() for _ in self.trials]
            journal.rewind(-1)
        else:
            manifest = checkpoint.manifest
            if not manifest["finished"]:
                journal.rewind(checkpoint.tick)
            self.tick, self.left, self.saved_samples = checkpoint.tick, manifest["left"], manifest["samples"]
            self.clock = Clock.from_dict(manifest["clock"])
            self.progress = [Progress.from_dict(one) for one in manifest["progress"]]
            self.vault.restore(manifest["named"], tuner.prepared.abstract(manifest["named"]))
            screen.say(f"going on from tick {self.tick}")
        journal.remove_unnamed(FOLDER)
        self.metrics.rebuild()
        journal.append(self.tick, [Event("run_start", payload=whereabouts())])
        journal.set("trials", [_facts(trial) for trial in self.trials])
        self.compiled: dict[str, Any] = journal.get("compiled", {"count": 0, "seconds": 0.0})
        self.trackers = make_trackers(
            tuner.config.report_to, tuner.run_dir.name, tuner.run_dir, tuner.config.model_dump(mode="json")
        )
        total = sum(trial.stream.total_samples for trial in self.trials)
        every = tuner.config.checkpoint_samples
        self.every_samples = max(1, round(every * total if every < 1 else every))

    def run_base(self, number: int, base: Base, executor: Executor, capacity: Capacity, interrupt: Interrupt) -> bool:
        """Runs all trials of one base to their end. Returns False when interrupted, after a checkpoint."""
        first = base.trials[0].index
        progress = self.progress[first : first + len(base.trials)]
        validation = {task: self.prepared.data[task].validation for task in base.tasks}
        executor.ladders["train"].most_tokens = capacity.tokens
        race = Race(
            executor,
            base.trials,
            progress,
            validation,
            self.config.early_exit,
            self.vault,
            self.journal,
            self.clock,
            capacity.tokens,
            partial(new_trial, base),
            self._publish,
            tick=self.tick,
        )
        race.left = next((race.load(t) for t in base.trials if t.index == self.left), None)
        race.restore_slots()
        self._measure_base(base, executor, race)
        while not race.finished:
            race.advance()
            self.tick, self.left = race.tick, None if race.left is None else race.left.trial
            self.screen.show(self.trials, self.progress, self.clock, self.compiled["count"] + len(executor.compiles))
            samples = sum(t.stream.samples_after(p.step) for t, p in zip(self.trials, self.progress, strict=True))
            if interrupt.requested or samples // self.every_samples > self.saved_samples // self.every_samples:
                self.saved_samples = samples
                race.flush()
                self.save(number, executor, capacity, live=race.live())
                if interrupt.requested:
                    return race.finished
        self._count_compiles(executor)
        return True

    def save(
        self, number: int, executor: Executor | None, capacity: Capacity, *, live: Any = None, finished: bool = False
    ) -> None:
        """Writes a checkpoint: files first, then the row that names them, then what it replaced goes."""
        named = self.vault.save(self.tick, live or {})
        seen = {} if executor is None else {name: ladder.seen for name, ladder in executor.ladders.items()}
        manifest = {
            "base": number,
            "finished": finished,
            "left": self.left,
            "samples": self.saved_samples,
            "named": named,
            "capacity": _manifest_of(capacity),
            "shapes": {name: [[s.rows, s.length, s.targets] for s in shapes] for name, shapes in seen.items()},
            "clock": self.clock.to_dict(),
            "progress": [progress.to_dict() for progress in self.progress],
        }
        folders = [name for kind in named.values() for name in kind.values()]
        self.journal.commit_checkpoint(self.tick, manifest, folders)
        self.journal.prune_checkpoints(keep=1)
        if executor is not None:
            self._store_clock(executor, capacity)

    def close(self) -> None:
        """Ends the trackers."""
        for tracker in self.trackers:
            tracker.finish()

    def _measure_base(self, base: Base, executor: Executor, race: Race) -> None:
        known = {event.task for event in self.journal.events("base_loss")}
        points, events = [], []
        for task in base.tasks:
            if task in known:
                continue
            due = [(0, race.validation[task])]
            loss = executor.evaluate(due, race.rows_at_once(due))[0]
            events.append(Event("base_loss", task, None, {"loss": loss}))
            points.append(Point(task, None, 0, 0, 0, "base", loss, None, round(self.clock.elapsed_s, 3)))
        if events:
            self.journal.append(self.tick, events, points)
            self._publish(events, points)

    def _publish(self, events: list[Event], points: list[Point]) -> None:
        self.metrics.log(points)
        for tracker in self.trackers:
            tracker.log(points)
        self.screen.tell(events)

    def _store_clock(self, executor: Executor, capacity: Capacity) -> None:
        padded = [(t.stream.total_steps * t.config.gradient_accumulation_steps, t) for t in self.trials]
        steps = sum(count for count, _ in padded)
        tokens = sum(count * t.load.rows * t.length for count, t in padded)
        done = self.compiled["count"] + len(executor.compiles)
        seconds = self.compiled["seconds"] + sum(one.seconds for one in executor.compiles)
        self.journal.set(
            "clock",
            {
                "elapsed_s": self.clock.elapsed_s,
                "training_s": self.clock.training_s,
                "evaluation_s": self.clock.evaluation_s,
                "compiles": done,
                "compile_s": seconds,
                "tokens_per_s": self.clock.tokens_per_s(),
                "imbalance": self.clock.imbalance(),
                "devices": executor.spread.devices,
                "solo_estimate_s": self.clock.solo_s(steps, tokens),
                "capacity_tokens": capacity.tokens,
                "remat": capacity.remat.remat,
                "resident_bytes": capacity.resident_bytes,
            },
        )

    def _count_compiles(self, executor: Executor) -> None:
        self.compiled = {
            "count": self.compiled["count"] + len(executor.compiles),
            "seconds": self.compiled["seconds"] + sum(one.seconds for one in executor.compiles),
        }
        self.journal.set("compiled", self.compiled)
        executor.compiles.clear()


def _shapes(checkpoint: Checkpoint | None) -> dict[str, list[Shape]]:
    if checkpoint is None:
        return {}
    return {name: [Shape(*shape) for shape in shapes] for name, shapes in checkpoint.manifest["shapes"].items()}


def _manifest_of(capacity: Capacity) -> dict[str, Any]:
    return asdict(capacity) | {"remat": capacity.remat._asdict()}


def _capacity(checkpoint: Checkpoint | None) -> Capacity | None:
    if checkpoint is None:
        return None
    kept = checkpoint.manifest["capacity"]
    return Capacity(**{**kept, "remat": Remat(**kept["remat"])})


def _shape(rows: int, length: int, target_share: float) -> Shape:
    targets = max(32, int(rows * length * target_share))
    return Shape(rows, length, 1 << (targets - 1).bit_length())


def _facts(trial: Any) -> dict[str, Any]:
    values = trial.config.model_dump(mode="json")
    return {
        "task": trial.task,
        "trial": trial.name,
        "config": {**values, "lora_alpha": trial.config.alpha, "seed": trial.seed},
        "total_steps": trial.stream.total_steps,
        "total_samples": trial.stream.total_samples,
    }
