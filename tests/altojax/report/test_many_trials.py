"""The cost of showing a trial does not grow with the number of trials: counted, not timed."""

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from altojax.cluster.service.page.curves import read_losses
from altojax.cluster.service.progress_monitor import read_standing, trials_done
from altojax.config.search.space import TrialConfig
from altojax.device.batch import Stream
from altojax.early_exit.rules import Rules
from altojax.report import figures, status
from altojax.report.page import report_page
from altojax.report.record_tables import trials_csv
from altojax.report.run_record import read_record
from altojax.run.live_table import TrialTable
from altojax.run.run_times import RunTimes
from altojax.run.trial import Trial, TrialProgress
from jaxrun.store.journal import Journal
from jaxrun.store.records import Event, Point

FEW, MANY = 100, 400
SLACK = 1.2
"""How much more than in proportion work may grow: sorting does."""
SHAPES = {"one task": lambda i: "sums", "many tasks": lambda i: f"sums-{i}"}


def work_of(function: Callable[[], object]) -> int:
    """Counts the calls, resumptions and turns of loops in Python that a function takes."""
    count = 0

    def event(*_: object) -> None:
        nonlocal count
        count += 1

    monitoring, tool = sys.monitoring, sys.monitoring.PROFILER_ID
    kinds = (monitoring.events.PY_START, monitoring.events.PY_RESUME, monitoring.events.JUMP)
    monitoring.use_tool_id(tool, "work")
    try:
        for kind in kinds:
            monitoring.register_callback(tool, kind, event)
        monitoring.set_events(tool, sum(kinds))
        function()
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    return count


def write_journal(folder, task_of, trials):
    """The journal of a run with so many trials, all of which were stopped after two evaluations."""
    config = TrialConfig().model_dump(mode="json") | {"lora_alpha": 16.0, "seed": 0}
    schedule = {"total_steps": 10, "twice": 0.2, "warmup": 0.1}
    names = [(task_of(i), f"trial-{i}") for i in range(trials)]
    facts = [
        {
            "task": task,
            "trial": trial,
            "config": config | {"learning_rate": 1e-6 * (i + 1)},
            "total_steps": 10,
            "total_samples": 10,
            "schedule": schedule,
        }
        for i, (task, trial) in enumerate(names)
    ]
    ended = {"status": "stopped", "reason": "underperforming", "detail": "it was", "slot_s": 1.0}
    at = {"slot": 0, "step": 5, "samples": 5}
    events = [Event("base_loss", task, None, {"loss": 3.0}) for task in dict.fromkeys(task for task, _ in names)]
    events += [Event("start", *name, at) for name in names] + [Event("end", *name, at | ended) for name in names]
    points = [Point(*name, step, step, step, "validation", 3 / step, None, 1.0) for name in names for step in (1, 5)]
    with Journal.open(folder, config_text="output_dir: x\n", identity="d") as journal:
        journal.set("trials", facts)
        journal.append(1, events, points)
        progress = {"/".join(name): {"step": 5, "phase": "running"} for name in names}
        journal.commit_checkpoint(1, {"progress": progress, "clock": {"before_s": 1.0}}, [])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs by shape and number of trials."""
    root, made = tmp_path_factory.mktemp("many"), {}
    for shape, task_of in SHAPES.items():
        for trials in (FEW, MANY):
            made[shape, trials] = root / f"{shape}-{trials}"
            write_journal(made[shape, trials], task_of, trials)
    return made


def record_of(run_dir):
    with Journal.read(run_dir) as journal:
        return read_record(journal)


def shown_status(run_dir):
    status.run({"run": str(run_dir)})


def table(run_dir):
    trials_csv(record_of(run_dir))


def page(run_dir):
    record = record_of(run_dir)
    report_page(run_dir, record, dict.fromkeys(record.tasks, ()), (), "")


def pictures(run_dir):
    record = record_of(run_dir)
    for task in record.tasks:
        figures.task_pictures(record, task)
    figures.run_pictures(record)


def losses(run_dir):
    read_losses(run_dir, set(record_of(run_dir).tasks))


def queue_row(run_dir):
    assert trials_done(str(run_dir), set(record_of(run_dir).tasks))


def watched(run_dir):
    assert read_standing(run_dir, Rules.model_validate({"preset": "default"})).trials


VIEWS = [shown_status, table, page, pictures, losses, queue_row, watched]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
@pytest.mark.parametrize("shape", SHAPES)
def test_four_times_the_trials_are_four_times_the_work(runs, monkeypatch, capsys, view, shape):
    for name in ("loss_curves", "parallel_coordinates", "timeline", "bars"):
        monkeypatch.setattr(figures, name, lambda *given, **named: None)
    view(runs[shape, FEW])  # what is made once is there
    few, many = (work_of(lambda trials=trials: view(runs[shape, trials])) for trials in (FEW, MANY))
    assert few > FEW
    assert many <= SLACK * MANY / FEW * few


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("terminal", [True, False])
def test_a_live_table_is_made_as_often_as_it_is_shown_and_at_the_end(shape, terminal):
    trials = [
        Trial(i, SHAPES[shape](i), f"trial-{i}", TrialConfig(), {}, Stream([], 0, 100, 1, 1), 0, 32)
        for i in range(MANY)
    ]
    data = {trial.task: SimpleNamespace(notes=()) for trial in trials}
    prepared = SimpleNamespace(data=data, bases=[SimpleNamespace(trials=trials)])
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, height=20, color_system=None)
    progress = [TrialProgress() for _ in trials]
    assert work_of(lambda: TrialTable(console, prepared)) < 200 * MANY
    with TrialTable(console, prepared) as screen:
        screen.show(trials, progress, RunTimes(), 0)
        progress[:] = [replace(one, phase="done", status="completed", step=100) for one in progress]
        assert work_of(lambda: screen.show(trials, progress, RunTimes(), 0)) < MANY / 4
    assert (f"done {MANY}/{MANY}" in console.file.getvalue()) == terminal
