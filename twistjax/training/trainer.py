"""A training from end to end: a model and text in, a central model out any of whose subnetworks is a good model.

Subnetworks, rows and learning rates of a round depend on the config and the round's number alone, so a killed run
resumes from its last checkpoint to the same bits. A checkpoint's files are written before the journal's row that names
them; all input is checked before the run's folder exists.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from rich.console import Console

from jaxlm.devices.hosts import ALONE, Hosts
from jaxlm.devices.machine import device_budget, whereabouts
from jaxlm.files.checkpoint import save_tree
from jaxlm.models.computation import compute_dtype
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import StopAsked, Stopped, catch_interrupt
from jaxrun.store.journal import Journal
from jaxrun.store.opening import RunOpening, day_of
from jaxrun.store.records import Checkpoint, Event, Point, record_errors
from jaxrun.store.run_folder import JOURNAL_NAME, folder_in
from jaxrun.store.run_log import CHECKPOINTS, RunLog
from jaxrun.store.save_pace import SavePace
from jaxrun.terminal.progress import say
from twistjax.config import SELF, Evaluation, TwistConfig
from twistjax.report.loss_gap import warning
from twistjax.training.central_model import Saved, checkpoint_bytes, load_saved, saved_like
from twistjax.training.live_table import LossTable
from twistjax.training.local_training import Moments
from twistjax.training.prepare import (
    PreparedTraining,
    assignment_of,
    build_rounds,
    differences,
    identity_of,
    load_weights,
    prepare,
    ranked,
    scorer_of,
)
from twistjax.training.rounds import Central, Wave, on_this_host, subnet_mesh
from twistjax.training.rounds_plan import at_once, every, ticket_key
from twistjax.training.run_times import TrainingTimes
from twistjax.training.teacher import TeacherLabels, check_teacher, has_labels, label_bytes, label_rows, open_labels

MAKES = (
    "config.yaml",
    "metrics.jsonl",
    "tickets.json",
    "baselines",
    "baselines.json",
    "report.html",
    "plots",
    "checkpoints",
    "teacher",
    "tensorboard",
    "wandb",
)
SAVING = 0.05
"""Of the time, at most, for checkpoints, where the config does not say how often they are written."""


class Trainer:
    """One run of ``twistjax train``."""

    def __init__(
        self,
        config: TwistConfig,
        *,
        overwrite: bool = False,
        console: Console | None = None,
        prepared: PreparedTraining | None = None,
        start: Callable[[], dict[str, Array]] | None = None,
        labelled: Sequence[Path] = (),
        hosts: Hosts = ALONE,
    ):
        """Checks the whole input; writes nothing.

        Args:
            config: The run.
            overwrite: Discard what an earlier run left in its folder.
            console: Where progress is shown.
            prepared: What the run works on; None reads it.
            start: Gives the weights to start from, float32 by path; None loads the config's model.
            labelled: Folders of other runs, whose teacher's labels are taken where they are the ones needed here.
            hosts: The processes of the run, each with a trainer of its own. The leader alone writes and shows progress.

        Raises:
            UserError: Anything wrong with the input.
        """
        self.config, self.overwrite = config, overwrite
        self.run_dir = Path(config.output_dir)
        self.hosts = hosts
        self.console = (console or Console()) if hosts.leads else Console(quiet=True)
        day = date.fromisoformat(hosts.decide(day_of(self.run_dir, overwrite=overwrite).isoformat()))
        if prepared is None:
            say(self.console, "reading the text")
        with hosts.together():
            self.prepared = prepared or prepare(config, day=day)
            if self._teacher is not None and (overwrite or not has_labels(self.run_dir)):
                check_teacher(self._teacher, self.prepared.model, self.prepared.tokenizer, config.data.max_length)
            subnet_mesh(at_once(config.subnetworks))
        self.start, self.labelled = start or partial(load_weights, config), labelled

    def run(self) -> int:
        """Trains until the last round, or until interrupted; exit code 0 or 130."""
        hosts = self.hosts
        with ExitStack() as stack:
            with hosts.together():
                if hosts.leads:
                    self.opening.check()
                journal = stack.enter_context(self.opening.open()) if hosts.leads else None
            interrupt = stack.enter_context(catch_interrupt())
            screen = stack.enter_context(LossTable(self.console, self.prepared.plan.rounds))
            if not self.config.subnetworks.draws and self.config.evaluation.tickets != Evaluation().tickets:
                screen.say("by importance there is one ticket of a kappa: evaluation.tickets is of no use")
            for line in (*self.prepared.train.summary(), *self.prepared.validation.summary()):
                screen.say(line)
            screen.say(f"loading {self.config.model.model_name_or_path}, and compiling the first steps")
            try:
                run = _Run(self, journal, screen, interrupt)
            except Stopped:
                screen.say("interrupted before the first round; the same command starts it")
                return 130
            while not run.finished:
                with hosts.together():
                    run.advance()
                said = hosts.gather([interrupt.requested, run.due])
                asked, due = any(stop for stop, _ in said), said[0][1]
                if asked or due:
                    with hosts.together():
                        run.save()
                if asked and not run.finished:
                    screen.say("interrupted, with all saved; the same command resumes it")
                    return 130
            with hosts.together():
                run.finish()
        return 0

    @property
    def opening(self) -> RunOpening:
        """The run's folder, to check and to open."""
        return RunOpening(
            self.config,
            self.run_dir,
            identity_of(self.config, self.prepared),
            makes=MAKES,
            day=self.prepared.day,
            overwrite=self.overwrite,
            differences=differences,
            reads=self._reads,
            report_to=self.config.report_to,
            least_bytes=checkpoint_bytes(self.config, self.prepared) + self._teacher_bytes,
        )

    @property
    def _reads(self) -> dict[str, str]:
        """What the run reads, by key."""
        read = {"model.model_name_or_path": self.config.model.model_name_or_path}
        read |= {f"data.{key}": path for key, path in self.config.data.paths.items()}
        return read if self._teacher is None else {**read, "training.teacher": self._teacher}

    @property
    def _teacher(self) -> str | None:
        """The model that labels rows, if there is one."""
        teacher = self.config.training.teacher
        return None if teacher == SELF else teacher

    @property
    def _teacher_bytes(self) -> int:
        if self._teacher is None:
            return 0
        prepared, length = self.prepared, self.config.data.max_length
        return label_bytes(self.run_dir, prepared.model.vocab_size, len(prepared.plan.rows_read), length)


class _Run:
    """A training as it runs; that of the leader alone records, evaluates and saves."""

    def __init__(self, trainer: Trainer, journal: Journal | None, screen: LossTable, asked: StopAsked):
        self.config, self.prepared, self.screen = trainer.config, trainer.prepared, screen
        self.leads = trainer.hosts.leads
        self.run_dir, self.plan = trainer.run_dir, trainer.prepared.plan
        self.scorer = scorer_of(trainer.config, trainer.prepared)
        self.rounds = build_rounds(trainer.config, trainer.prepared, min(trainer.hosts.gather(device_budget())))
        self.round, self.clock, saved = 0, TrainingTimes(), None
        like = saved_like(self.config, self.prepared)
        with trainer.hosts.together():
            checkpoint = None if journal is None else journal.last_checkpoint()
            if self.leads:
                saved = self._begin(checkpoint, trainer)
            start = whereabouts(self.rounds.mesh.size)
            self.run_log = RunLog(self.config, journal, checkpoint, start, report_to=self.config.report_to)
            self.run_log.note("state", sorted(like.tree()))
            self.run_log.note("plan", {"rounds": self.plan.rounds, "steps": self.plan.steps, "rows": self.plan.rows})
        self.round = trainer.hosts.decide(self.round)
        central, order = trainer.hosts.broadcast(saved, like)
        self.central, self.saved = self.rounds.place(central), self.round
        self.assignment = assignment_of(self.config, self.prepared, order)
        self.labels = self._teacher(trainer.hosts, asked, trainer.labelled)
        size = checkpoint_bytes(trainer.config, trainer.prepared)
        self.pace = SavePace(SAVING, self.clock.elapsed_s, size)
        with trainer.hosts.together():
            if not any(event.tick == 0 for event in self.run_log.events("evaluation")):
                self._evaluate()

    def _begin(self, checkpoint: Checkpoint | None, trainer: Trainer) -> Saved:
        """Returns what the last checkpoint holds, or else what to start from."""
        if checkpoint is None:
            weights = trainer.start()
            zeros = [jax.tree.map(jnp.zeros_like, weights) for _ in range(2)] if self.carries else []
            velocity = jax.tree.map(jnp.zeros_like, weights) if self.config.training.outer == "nesterov" else None
            central = Central(weights, Moments(*zeros) if zeros else None, velocity)
            return Saved(central, ranked(self.config, self.prepared, weights))
        with record_errors(self.run_dir / JOURNAL_NAME):
            self.round, self.clock = checkpoint.tick, TrainingTimes.from_dict(checkpoint.manifest["clock"])
        self.screen.say(f"resuming from round {self.round} of {self.plan.rounds}")
        return load_saved(self.run_dir, checkpoint, self.config, self.prepared)

    def _teacher(self, hosts: Hosts, asked: StopAsked, labelled: Sequence[Path]) -> TeacherLabels | None:
        """Lets a teacher read the rows, where there is one and it has not."""
        teacher, rows, read = self.config.training.teacher, self.prepared.train, self.plan.rows_read
        if teacher is None or teacher == SELF:
            return None
        with hosts.together():
            if self.leads:
                facts = label_rows(
                    self.run_dir,
                    teacher,
                    rows,
                    read,
                    dtype=compute_dtype(self.config.model),
                    rows_at_once=self.config.training.batch_size,
                    say=self.screen.say,
                    # Other processes wait for the labels: they would not learn of it.
                    asked=asked if hosts.processes == 1 else None,
                    others=labelled,
                )
                self.run_log.note("teacher", facts)
        with hosts.together():
            return open_labels(self.run_dir, rows, read, self.prepared.model.vocab_size)

    @property
    def carries(self) -> bool:
        """Whether moments go from round to round."""
        return self.config.training.optimizer_state == "carry"

    @property
    def finished(self) -> bool:
        """Whether the last round is done and saved."""
        return self.round == self.plan.rounds == self.saved

    @property
    def due(self) -> bool:
        """Whether this process would write a checkpoint after this round; that of the leader counts."""
        if self.round == self.plan.rounds:
            return True
        if (asked := self.config.checkpoint_rounds) is None:
            return self.pace.due(self.clock.elapsed_s)
        return self.round - self.saved >= every(asked, self.plan.rounds)

    def advance(self) -> None:
        """Runs a round, and what is due after it."""
        begun, compiled = time.perf_counter(), self.rounds.compile_s
        kappas = self.plan.kappas(self.round)
        waves = self._waves(kappas)
        rates = self.plan.rates(self.round)
        before = self.round * self.config.training.local_steps if self.carries else 0
        self.central, losses = self.rounds.run(self.central, waves, rates, before)
        self.round += 1
        self.clock.training_s += time.perf_counter() - begun - (self.rounds.compile_s - compiled)
        self.clock.tokens = self.round * self.plan.samples_per_round * self.config.data.max_length
        if not np.isfinite(losses).all():
            raise UserError(
                f"{self.run_dir}: a loss of round {self.round} is not finite, "
                f"expected a lower training.learning_rate than {self.config.training.learning_rate:g}"
            )
        size = at_once(self.config.subnetworks)
        by_kappa: dict[float, list[float]] = {}
        for kappa, own in zip(kappas, np.split(losses, losses.shape[1] // size, axis=1), strict=True):
            by_kappa.setdefault(kappa, []).append(float(own.mean()))
        points = [
            self._point(name_of(kappa), "train", float(np.mean(own)), float(rates[-1]))
            for kappa, own in sorted(by_kappa.items())
        ]
        self._record([], points)
        often = every(self.config.evaluation.every, self.plan.rounds)
        if self.round == self.plan.rounds or self.round % often == 0:
            self._evaluate()
        left = -(-self.plan.rounds // often) - self.round // often
        self.screen.show(self.round, self.clock, len(self.rounds.programs), evaluations=left)

    def save(self) -> None:
        """Writes a checkpoint: files first, then the row that names them, then what it replaced goes."""
        self.saved = self.round
        if not self.leads:
            return
        name, before_s = f"{CHECKPOINTS}/central.{self.round}", self.clock.checkpoint_s
        with self.clock.measure("checkpoint_s"):
            folder_in(self.run_dir, CHECKPOINTS)
            save_tree(self.run_dir / name, Saved(on_this_host(self.central), self.assignment.order).tree())
            self.run_log.commit(self.round, {"central": name, "clock": self.clock.to_dict()}, [name])
        self.pace.saved(self.clock.elapsed_s, self.clock.checkpoint_s - before_s)
        compiled = {
            "compiles": len(self.rounds.programs),
            "compile_s": self.rounds.compile_s,
            "peak_bytes": self.rounds.peak_bytes,
        }
        self.run_log.note("clock", self.clock.to_dict() | compiled)

    def finish(self) -> None:
        """Says how the run ended, and writes its report."""
        if not self.leads:
            return
        if not self.run_log.events("finish"):
            self.run_log.add(self.round, [Event("finish")], [])
        self.run_log.close()
        losses = self.run_log.events("evaluation")[-1].payload
        for kappa in self.config.subnetworks.ladder:
            if line := warning(f"a ticket of kappa {kappa:g}", float(np.mean(losses[name_of(kappa)])), losses["full"]):
                self.screen.say(line)
        from twistjax.report.write_report import write_report  # matplotlib takes long to import

        for path in write_report(self.run_dir):
            self.screen.say(f"wrote {path}")

    def _waves(self, kappas: list[float]) -> list[Wave]:
        size = at_once(self.config.subnetworks)
        hands = self.assignment.deal(self.plan.key(self.round), [kappa for kappa in kappas for _ in range(size)])
        rows = self.plan.batch(self.round)
        train = self.prepared.train
        waves = []
        for number, kappa in enumerate(kappas):
            own = slice(number * size, (number + 1) * size)
            kept = jax.tree.map(lambda *parts: jnp.stack(parts), *hands[own])
            soft = None if self.labels is None else self.labels.of(rows[:, own])
            waves.append(Wave(kappa, kept, train.tokens[rows[:, own]], train.targets[rows[:, own]], soft))
        return waves

    def _evaluate(self) -> None:
        if not self.leads:
            return
        begun = time.perf_counter()
        weights, ladder = on_this_host(self.central).weights, self.config.subnetworks.ladder
        full = self.scorer.full(weights, ladder[0])
        points: list[Point] = [self._point("full", "validation", full)]
        payload: dict[str, Any] = {"full": full}
        for kappa in ladder:
            count = self.config.evaluation.tickets if self.assignment.draws else 1
            hands = [self.assignment.draw(ticket_key(self.config.seed, number), kappa) for number in range(count)]
            losses = [self.scorer.ticket(weights, kept, kappa) for kept in hands]
            points.append(self._point(name_of(kappa), "validation", float(np.mean(losses))))
            payload[name_of(kappa)] = losses
        self.clock.add_evaluation(time.perf_counter() - begun)
        self._record([Event("evaluation", payload=payload)], points)

    def _record(self, events: list[Event], points: list[Point]) -> None:
        self.run_log.add(self.round, events, points)
        self.screen.report(events, points, self.round)

    def _point(self, name: str, split: str, loss: float, rate: float | None = None) -> Point:
        samples = self.round * self.plan.samples_per_round
        tokens = samples * self.config.data.max_length
        step = self.round * self.config.training.local_steps
        return Point(None, name, step, samples, tokens, split, loss, rate, round(self.clock.elapsed_s, 3))


def name_of(kappa: float) -> str:
    """The name of a kappa's subnetworks in curves."""
    return f"kappa {kappa:g}"
