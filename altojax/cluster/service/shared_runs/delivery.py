"""Delivery of a shared run to one of its tasks: a run folder of its own, laid out as if it had run alone.

Its journal has its own events and losses under its own names and its part of the last checkpoint, so that the run
counts as finished. Times and slots are those of the shared run. A delivery that was cut off is begun anew; one that was
finished is left alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from altojax.adapters.peft_config import CONFIG_NAME
from altojax.cluster.service.shared_runs.merged_tasks import name_in
from altojax.config.tune_config import TuneConfig
from altojax.report.held_out import LOOKS
from altojax.run.run_identity import differences
from jaxrun.files.atomic import write_atomic
from jaxrun.files.folders import copy_files, replace_folder
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal
from jaxrun.store.metrics import MetricsLog
from jaxrun.store.opening import RunOpening, day_of
from jaxrun.store.records import Event, Point
from jaxrun.store.run_folder import folder_in
from jaxrun.store.run_log import CHECKPOINTS, is_checkpointed

_CARD = "README.md"


def deliver(shared: Path, job: str, config: TuneConfig) -> None:
    """Writes a task's part of a finished run that it shared into its own `output_dir`.

    Args:
        shared: The shared run's folder.
        job: The task's name in the queue.
        config: The run that it would be alone.

    Raises:
        UserError: The shared run is not finished, or the folder cannot be written or belongs to another run.
    """
    from altojax.config.tune_config import MAKES

    run_dir = Path(config.output_dir)
    names = {name_in(job, task.name): task.name for task in config.tasks}
    with Journal.read(shared) as source:
        with source.interpreted():
            manifest = source.manifest()
            finished = manifest is not None and manifest["finished"] and source.get("data", {}).keys() >= names.keys()
        if manifest is None or not finished:
            raise UserError(f"{shared}: not finished, expected the run that {job} shared to have come to its end")
        makes, day = (*MAKES, *names.values()), day_of(shared)
        own = _identity(source, names)
        with RunOpening(config, run_dir, own, makes=makes, day=day, differences=differences).open() as journal:
            if not journal.events("finish"):
                journal.rewind(-1)
                _copy(source, manifest, journal, names)
    from altojax.report.write_report import write_report  # matplotlib takes long to import

    write_report(run_dir)


def _copy(source: Journal, manifest: Mapping[str, Any], journal: Journal, names: Mapping[str, str]) -> None:
    mine = [one for one in source.get("trials") if one["task"] in names]
    journal.set("trials", [{**one, "task": names[one["task"]]} for one in mine])
    journal.set("data", {task: source.get("data")[name] for name, task in names.items()})
    templates = source.get("templates", {})
    journal.set("templates", {task: templates[name] for name, task in names.items() if name in templates})
    asking = source.get("asking", {})
    journal.set("asking", {task: asking[name] for name, task in names.items() if name in asking})
    looks = source.get(LOOKS, {})
    journal.set(LOOKS, {task: looks[name] for name, task in names.items() if name in looks})
    for key in ("clock", "compiled", "result", "select_by"):
        if (fact := source.get(key)) is not None:
            journal.set(key, fact)
    events = [event for event in source.events() if event.kind != "finish"]
    for event in events:
        if event.task is None or event.task in names:
            journal.append(event.tick, [_renamed(event, names)])
    tick = max(event.tick for event in events)
    journal.append(tick, (), [_renamed(point, names) for point in source.points() if point.task in names])
    MetricsLog(journal.run_dir, journal).rebuild()
    for name, task in names.items():
        for adapter in sorted((source.run_dir / name).glob(f"*/{CONFIG_NAME}")):
            _copy_adapter(adapter.parent, folder_in(journal.run_dir, task) / adapter.parent.name, name, task)
    named: dict[str, dict[str, str]] = {
        kind: {
            _own(trial, names): _copy_checkpoint(source.run_dir / folder, trial, journal.run_dir, names)
            if is_checkpointed(folder)
            else _own(trial, names)
            for trial, folder in of_kind.items()
            if trial.partition("/")[0] in names
        }
        for kind, of_kind in manifest["named"].items()
    }
    own = {**manifest, "named": named, "left": None}
    own["progress"] = {
        _own(trial, names): one for trial, one in manifest["progress"].items() if trial.partition("/")[0] in names
    }
    folders = [folder for of_kind in named.values() for folder in of_kind.values()]
    journal.commit_checkpoint(tick, own, list(filter(is_checkpointed, folders)))
    journal.append(tick, [Event("finish")])


def _identity(source: Journal, names: Mapping[str, str]) -> dict[str, Any]:
    """The run's part of the shared run, as the run alone would be."""
    whole: dict[str, Any] = source.identity
    return {**whole, "tasks": {task: whole["tasks"][name] for name, task in names.items()}}


def _renamed[Record: (Event, Point)](record: Record, names: Mapping[str, str]) -> Record:
    return record if record.task is None else replace(record, task=names[record.task])


def _own(trial: str, names: Mapping[str, str]) -> str:
    task, _, name = trial.partition("/")
    return f"{names[task]}/{name}"


def _copy_adapter(folder: Path, to: Path, name: str, task: str) -> None:
    with replace_folder(to) as partial:
        copy_files(folder, partial)
        card = (folder / _CARD).read_text(encoding="utf-8")
        write_atomic(partial / _CARD, card.replace(name, task))


def _copy_checkpoint(folder: Path, trial: str, run_dir: Path, names: Mapping[str, str]) -> str:
    """Copies a trial's files of a checkpoint (``task/name``); returns the copy's name within `run_dir`."""
    rest = folder.name.removeprefix(trial.replace("/", "."))
    own = f"{CHECKPOINTS}/{_own(trial, names).replace('/', '.')}{rest}"
    folder_in(run_dir, CHECKPOINTS)
    with replace_folder(run_dir / own) as partial:
        copy_files(folder, partial)
    return own
