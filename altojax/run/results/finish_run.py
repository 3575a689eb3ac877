"""The end of a run: adapters that are not written yet, the best of each task and its test, tables and report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from altojax.adapters.model_card import model_card
from altojax.config.objectives import base_loss_of
from altojax.config.tune_config import TuneConfig
from altojax.early_exit.metric import metric_text
from altojax.report.held_out import HeldOut
from altojax.report.run_record import record_of
from altojax.report.worth import worth_line
from altojax.run.live_table import TrialTable
from altojax.run.load_base import LoadedBase
from altojax.run.loop.starts import best_of
from altojax.run.prepare import PreparedBase, PreparedRun, TaskData
from altojax.run.results.measure_held_out import measure_held_out
from altojax.run.results.write_adapters import card_of, spec_of, write_adapter
from altojax.run.snapshots import Snapshots
from altojax.run.trial import Trial, TrialProgress
from jaxlm.devices.hosts import ALONE, Hosts
from jaxrun.files.atomic import write_atomic
from jaxrun.files.folders import copy_files, remove_leftovers, replace_folder
from jaxrun.process.interrupt import StopAsked
from jaxrun.store.records import Event, record_errors
from jaxrun.store.run_folder import JOURNAL_NAME, folder_in
from jaxrun.store.run_log import RunLog
from jaxrun.terminal.sizes import counted


def finish_run(
    config: TuneConfig,
    prepared: PreparedRun,
    snapshots: Snapshots,
    progress: Sequence[TrialProgress],
    run_log: RunLog,
    screen: TrialTable,
    loaded: LoadedBase,
    hosts: Hosts = ALONE,
    asked: StopAsked | None = None,
) -> None:
    """Exports and measures what is not yet, and writes the tables and the report; the leader alone writes.

    Args:
        config: The run.
        prepared: Its models and trials.
        snapshots: Holds the best adapters.
        progress: Of all trials, in order.
        run_log: The record; says what an earlier, interrupted finish has done.
        screen: Prints the best of each task.
        loaded: Has the last base's executor, where a run has not ended before.
        hosts: The processes of the run; all of them must call it.
        asked: Asks it to stop; None where several processes must agree on it first.

    Raises:
        UserError: A file cannot be written.
        Stopped: It was asked to, while it measured.
    """
    run_dir = Path(config.output_dir)
    tick = max((event.tick for event in run_log.events()), default=0)
    with record_errors(run_dir / JOURNAL_NAME):
        measured = {(one.task, one.trial): HeldOut.from_payload(one.payload) for one in run_log.events("test")}
    with hosts.together():
        todo = _not_exported(config, prepared, snapshots, progress, run_log, screen) if hosts.leads else None
    for base, exports in zip(prepared.bases, hosts.decide(todo), strict=True):
        if exports:
            screen.say(f"exporting {counted(len(exports), 'adapter')}")
        for index, name in exports:
            trial = base.trials[index - base.trials[0].index]
            with hosts.together():
                if hosts.leads:
                    known = measured.get((trial.task, trial.name))
                    _export(run_dir, name, base, trial, progress[index], prepared.data[trial.task], snapshots, known)
                run_log.add(tick, [Event("export", trial.task, name, {"step": progress[index].best_step})], [])
        with hosts.together():
            if hosts.leads:
                _announce_best(run_dir, base, progress, prepared.data, tick, run_log, screen)
        tested = hosts.decide([task for task, _ in measured])
        for task, trial in best_of(base, progress).items():
            data = prepared.data[task]
            if trial is None or not data.test or task in tested:
                continue
            screen.say(f"{task}: measuring {trial.name} and the base on {counted(len(data.test), 'test row')}")
            like = prepared.abstract({"best": {trial.full_name: task}})["best"][trial.full_name]
            best = run_dir / task / "best"
            found = measure_held_out(best, base, trial, data.test, like, run_log, loaded, hosts, asked)
            with hosts.together():
                if hosts.leads:
                    _write_cards(run_dir / task, base, trial, progress[trial.index], data, found)
                event = Event("test", task, trial.name, found.to_payload())
                run_log.add(tick, [event], [])
                screen.report([event])
    from altojax.report.write_report import write_report  # matplotlib takes long to import

    with hosts.together():
        if not run_log.events("finish"):
            run_log.add(tick, [Event("finish")], [])
            if hosts.leads:
                record = record_of(run_dir)
                for line in filter(None, (worth_line(record, task) for task in record.tasks)):
                    screen.say(line)
        for path in write_report(run_dir) if hosts.leads else ():
            screen.say(f"wrote {path}")


def _not_exported(
    config: TuneConfig,
    prepared: PreparedRun,
    snapshots: Snapshots,
    progress: Sequence[TrialProgress],
    run_log: RunLog,
    screen: TrialTable,
) -> list[list[tuple[int, str]]]:
    """Returns, for every base, (trial, name of its folder) still to be exported; removes leftovers."""
    run_dir = Path(config.output_dir)
    exported = {(event.task, event.trial) for event in run_log.events("export")}
    for task in prepared.data:
        if (run_dir / task).is_dir():
            remove_leftovers(folder_in(run_dir, task))
    todo = []
    for base in prepared.bases:
        every = [one for one in base.trials if math.isfinite(progress[one.index].best_loss)]
        held = [(trial, trial.name) for trial in every if snapshots.has("best", trial.full_name)]
        named = held if config.keep_adapters == "all" else []
        if named and len(held) < len(every):
            gone = len(every) - len(held)
            which = "whose trials ended while keep_adapters was best, or whose folders were removed"
            screen.say(f"not written: {counted(gone, 'adapter')}, {which}")
        for trial in filter(None, best_of(base, progress).values()):
            if snapshots.has("best", trial.full_name):
                named.append((trial, "best"))
            elif not (run_dir / trial.task / "best").is_dir():
                screen.say(f"{trial.task}: no best adapter is left: it was {trial.name}'s, whose folder was removed")
        todo.append(
            [
                (trial.index, name)
                for trial, name in named
                if (trial.task, name) not in exported or not (run_dir / trial.task / name).exists()
            ]
        )
    return todo


def _export(
    run_dir: Path,
    name: str,
    base: PreparedBase,
    trial: Trial,
    state: TrialProgress,
    data: TaskData,
    snapshots: Snapshots,
    held_out: HeldOut | None,
) -> None:
    """Puts a trial's adapter into a folder of its task: the best one's is a copy where the trial has its own."""
    folder = folder_in(run_dir, trial.task) / name
    written = snapshots.folder_of(trial.full_name)
    if written is None or not written.is_dir():
        write_adapter(folder, base, trial, state, data, snapshots.get("best", trial.full_name), held_out)
        if name == trial.name:
            snapshots.wrote(trial.full_name)
    elif written != folder:
        with replace_folder(folder) as partial:
            copy_files(written, partial)


def _announce_best(
    run_dir: Path,
    base: PreparedBase,
    progress: Sequence[TrialProgress],
    data: Mapping[str, TaskData],
    tick: int,
    run_log: RunLog,
    screen: TrialTable,
) -> None:
    announced = {event.task for event in run_log.events("best")}
    measured = {event.task: event.payload for event in run_log.events("base_loss")}
    for task, trial in best_of(base, progress).items():
        if task in announced:
            continue
        if trial is None:
            screen.say(f"{task}: no trial reached a finite validation loss; there is no adapter")
            continue
        state = progress[trial.index]
        payload = {"loss": state.best_loss, "step": state.best_step, "average": state.best_average}
        payload |= zip(("metric", "metric_error"), state.best_metric, strict=False)
        run_log.add(tick, [Event("best", task, trial.name, payload)], [])
        losses = f"validation loss {state.best_loss:.4f}"
        base_loss = base_loss_of(measured[task], trial.settings)
        if base_loss is not None:
            losses = f"{losses} (base {base_loss:.4f})"
        if state.best_metric:
            losses = f"{metric_text(data[task].select_by, *state.best_metric[:2])}, {losses}"
        screen.say(f"{task}: best is {trial.name}, {losses}; its adapter is {run_dir / task / 'best'}")


def _write_cards(
    folder: Path, base: PreparedBase, trial: Trial, state: TrialProgress, data: TaskData, held_out: HeldOut
) -> None:
    """Writes the cards of a task's winner, under both of its names, anew with what was measured of it."""
    card = model_card(spec_of(base, trial), card_of(base, trial, state, data, held_out), whole=base.config.whole)
    for name in ("best", trial.name):
        if (folder / name).is_dir():
            write_atomic(folder / name / "README.md", card)
