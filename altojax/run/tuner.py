"""A tuning run from end to end: tasks in, the best adapter of each out.

Order of things, so that nothing is lost and nothing half-written:

1. Everything that can be wrong with the input is checked before the run's folder exists.
2. A checkpoint's files are written and fsynced, then the journal's row that names them, then older files go.
3. A resumed run forgets what came after its last checkpoint and decides it again, in float32 to the same end.
4. Adapters are exported when all trials have ended; an export is put in place whole or not at all.

Of several processes each computes the same. They meet where something is recorded, and after a few seconds of steps.
"""

import time
from contextlib import ExitStack
from datetime import date
from pathlib import Path

from rich.console import Console

from altojax.config.tune_config import MAKES, TuneConfig
from altojax.device.batch_shapes import expected_shape
from altojax.device.executor import Executor
from altojax.device.memory import Capacity, enough_tokens, evaluation_rows, plan_capacity
from altojax.early_exit.callbacks import NOBODY, Observers
from altojax.run.checkpoint import capacity_of, held_by, is_done, plain_capacity, progress_at, resume, variant_at
from altojax.run.live_table import TrialTable
from altojax.run.load_base import (
    LoadedBase,
    PlacedBase,
    course_of,
    explained_out_of_memory,
    largest_step,
    least_disk_bytes,
    remats_from,
    smallest_step,
)
from altojax.run.loop.checkpointed_run import CheckpointedRun
from altojax.run.loop.scoring import ScoreAnswer, grade_of
from altojax.run.loop.shape_forecast import foresee_first
from altojax.run.loop.starts import adopt_winners
from altojax.run.prepare import PreparedBase, PreparedRun, prepare
from altojax.run.results.finish_run import finish_run
from altojax.run.run_identity import as_begun, changes, differences, given_to, identity_of
from jaxlm.devices.hosts import ALONE, Hosts
from jaxrun.config.config import check_config
from jaxrun.config.strict_yaml import parse_yaml
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import StopAsked, Stopped, catch_interrupt
from jaxrun.store.journal import Checkpoint, Journal
from jaxrun.store.opening import RunOpening, day_of
from jaxrun.store.records import record_errors
from jaxrun.store.run_folder import JOURNAL_NAME
from jaxrun.terminal.progress import say
from jaxrun.terminal.sizes import counted
from pallas_kernels.slot_updates import fused


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
        score: ScoreAnswer | None = None,
    ):
        """Checks the whole input; writes nothing.

        Args:
            config: The run.
            overwrite: Discard what an earlier run left in its folder.
            console: Where progress is shown.
            hosts: The processes of the run, each with a tuner of its own. The leader alone writes and shows progress.
            observers: The caller's code, which sees every evaluation; the leader's is asked.
            score: The caller's code that scores answers, where ``select_by`` is score; likewise.

        Raises:
            UserError: Anything wrong with models, data, target modules or search spaces, or other ones elsewhere.
        """
        self.config, self.overwrite, self.hosts, self.observers = config, overwrite, hosts, observers
        self.begun_s = time.perf_counter()
        self.run_dir = Path(config.output_dir)
        self.console = (console or Console()) if hosts.leads else Console(quiet=True)
        day = date.fromisoformat(hosts.decide(day_of(self.run_dir, overwrite=overwrite).isoformat()))
        say(self.console, f"reading the rows of {counted(len(config.tasks), 'task')}")
        with hosts.together():
            self.prepared: PreparedRun = prepare(config, day)
            self.grade = grade_of(config, score) if hosts.leads else None
        hosts.same("config, models and data", given_to(config, self.prepared))

    def run(self, interrupt: StopAsked | None = None) -> int:
        """Trains until every trial has ended, or until interrupted; exit code 0 or 130.

        Args:
            interrupt: What asks the run to stop; None is the signals that `catch_interrupt` catches.

        Raises:
            UserError: What only loading or writing shows.
            Failure: Memory ran out.
        """
        hosts = self.hosts
        with explained_out_of_memory(self.config, self.prepared.bases), ExitStack() as stack:
            journal = said = changed = None
            with hosts.together():
                if hosts.leads:
                    self.opening.check()
                if hosts.leads and (self.run_dir / JOURNAL_NAME).exists() and not self.overwrite:
                    changed = self._changes()
                    journal = stack.enter_context(self.opening.open())
                    found = journal.last_checkpoint()
                    said = [journal.get("trials", []), None if found is None else [found.tick, found.manifest]]
            begun, saved = hosts.decide(said) or ((), None)
            checkpoint = None if saved is None else Checkpoint(*saved)
            with record_errors(self.run_dir / JOURNAL_NAME):
                self.prepared = as_begun(self.prepared, begun)
                progress = progress_at(self.prepared, checkpoint)
                finished = checkpoint is not None and checkpoint.manifest["finished"]
            bases = self.prepared.bases
            undone = [number for number, base in enumerate(bases) if not is_done(base, progress)]
            ended = finished and not undone
            first, last = (undone[0], undone[-1]) if undone else (len(bases) - 1, len(bases) - 1)
            screen = stack.enter_context(TrialTable(self.console, self.prepared))
            loaded = stack.enter_context(LoadedBase(self.config, hosts))
            if not ended:
                if changed is not None:
                    screen.say(changed)
                screen.say(f"loading {bases[first].spec.model_name_or_path}, and compiling the first steps")
                capacity = self._make_ready(loaded, bases[first], screen, checkpoint)
            with hosts.together():
                if hosts.leads and journal is None:
                    journal = stack.enter_context(self.opening.open())
            asked = stack.enter_context(catch_interrupt()) if interrupt is None else interrupt
            state = CheckpointedRun(
                self.config,
                self.prepared,
                hosts,
                self.observers,
                screen,
                journal,
                checkpoint,
                progress,
                self.begun_s,
                devices=loaded.devices,
                grade=self.grade,
            )
            for number in undone:
                if number > first:
                    adopt_winners(bases, progress)
                    screen.say(f"loading {bases[number].spec.model_name_or_path}")
                    capacity = self._make_ready(loaded, bases[number], screen)
                if not state.run_base(number, loaded.executor(bases[number]), capacity, asked):
                    screen.say("interrupted, with all saved; the same command resumes it")
                    return 130
            if not ended:
                with hosts.together():
                    state.save(last, loaded.executor(bases[last]), capacity, finished=True)
                if not any(self.prepared.data[task].test for task in bases[last].tasks):  # which may be of new shapes
                    loaded.executor(bases[last]).close()
            alone = asked if hosts.processes == 1 else None
            try:
                finish_run(
                    self.config,
                    self.prepared,
                    state.snapshots,
                    state.progress,
                    state.run_log,
                    screen,
                    loaded,
                    hosts,
                    alone,
                )
            except Stopped:
                screen.say("interrupted; run the same command again to measure what is left")
                return 130
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
            reads=self.config.reads,
            report_to=self.config.report_to,
            least_bytes=sum(least_disk_bytes(self.config, base) for base in self.prepared.bases),
        )

    def _changes(self) -> str | None:
        """Returns a line about what of the config has changed since the run was last called; None where nothing has."""
        try:
            with Journal.read(self.run_dir) as journal:
                before = check_config(TuneConfig, parse_yaml(journal.config_text, "config.yaml"), "config.yaml")
        except UserError:  # it holds nothing yet, or an older program wrote it
            return None
        return changes(before, self.config)

    def _make_ready(
        self, loaded: LoadedBase, base: PreparedBase, screen: TrialTable, checkpoint: Checkpoint | None = None
    ) -> Capacity:
        """Loads a base, decides how much its steps may hold, unless a checkpoint says it, and says what they are."""
        with record_errors(self.run_dir / JOURNAL_NAME):
            variant = variant_at(checkpoint, base)
        executor = loaded.executor(base, variant)
        held = held_by(self.config, base, executor)
        with record_errors(self.run_dir / JOURNAL_NAME):
            known = resume(executor, checkpoint, held, loaded.placed.budget_bytes)
        capacity = known or self._plan(loaded.placed, executor)
        executor.recompute(capacity.remat)
        executor.programs.limit(capacity.rows)
        sharding, offer = executor.sharding, loaded.placed.offer(executor.variant._replace(remat=capacity.remat))
        screen.say(offer.told(course_of(base, sharding.slots, sharding.layout)[1]))
        if self.config.optimizer_state != "float32" and fused():
            screen.say(f"optimizer_state {self.config.optimizer_state}: XLA updates all slots, kernels know float32")
        return capacity

    def _plan(self, placed: PlacedBase, executor: Executor) -> Capacity:
        base, sharding, held = placed.base, executor.sharding, placed.offer(executor.variant).tokens
        loads, _ = course_of(base, sharding.slots, sharding.layout)
        largest = largest_step(base, loads, sharding.groups, sharding.own_slots, held)
        executor.programs.add_shape("train", largest)
        foresee_first(executor, base.trials, loads, largest)
        choices = remats_from(base.spec, executor.variant.remat)
        if (enough := enough_tokens()) is not None:
            rows = evaluation_rows(largest.rows, base.rows, sharding.own_slots)
            shape = expected_shape(rows, base.rows.length, base.targets)
            executor.programs.add_shape("eval", shape)
            executor.programs.begin("eval", shape)
        with self.hosts.together():
            smallest = smallest_step(base, loads)
            part = enough and max(smallest.tokens, min(enough, largest.tokens // 2))
            own = plan_capacity(executor, choices, largest, smallest, placed.budget_bytes, part)
        plans = [capacity_of(one) for one in self.hosts.gather(plain_capacity(own))]
        return min(plans, key=lambda plan: (-choices.index(plan.remat), plan.rows))
