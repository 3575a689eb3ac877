"""The service law: what goes wrong on behalf of one task ends that task with a reason, and nobody else's."""

import itertools
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from queues import (
    ANN,
    ScriptedEngine,
    ask,
    config_of,
    finish,
    leave,
    orchestrate,
    put,
    snapshot,
    statuses,
    submission,
    submit,
)

from altojax.cluster.engines.engine import Report
from altojax.cluster.engines.faults import Faults
from altojax.cluster.engines.local import LocalEngine
from altojax.cluster.engines.process import Identity
from altojax.cluster.engines.supervised import SupervisedEngine
from altojax.cluster.service.progress_monitor import read_standing
from altojax.cluster.service.queue.queue_view import Reader
from altojax.cluster.service.queue.submission import Submission
from altojax.config.tune_config import LONGEST_NAME
from jaxrun.store.journal import Journal
from jaxrun.store.records import Event

PLACES = (
    "altojax.cluster.service.request_handler.Submission.from_json",
    "altojax.cluster.service.request_handler.TuneConfig.model_validate_json",
    "altojax.cluster.service.request_handler.reads_of",
    "altojax.cluster.service.request_handler.check_writes",
    "altojax.cluster.service.speeds.Speeds.job",
    "altojax.cluster.service.speeds.Speeds.learn",
    "altojax.cluster.service.speeds.Speeds.concerns",
    "altojax.cluster.service.job_folder.dump_config",
    "altojax.cluster.service.job_folder.write_atomic",
    "altojax.cluster.service.orchestrator.read_standing",
    "altojax.cluster.service.progress_monitor.read_standing",
    "queues.ScriptedEngine.start",
)
ERRORS = (KeyError("progress"), PermissionError(13, "Permission denied"), RecursionError("too deep"))


def concerns_first(arguments: tuple[object, ...]) -> bool:
    """Whether a call is on behalf of the first of two tasks, whose name is sums-1 and whose folder is called first."""
    said = " ".join(map(str, arguments))
    return "sums-1" in said or "/first" in said


@pytest.mark.parametrize(("place", "error"), [*zip(PLACES, itertools.cycle(ERRORS), strict=False)])
def test_a_fault_at_any_call_for_one_task_reaches_no_other(tmp_path, monkeypatch, place, error):
    queue, hits = tmp_path / "queue", []
    for name in ("first", "second"):
        with Journal.open(tmp_path / name, config_text="a: 1\n", identity="x") as journal:
            journal.append(0, [Event("run_start", payload={"device": "1 × cpu"})])
        put(queue, tmp_path / name)
    owner, _, name = place.rpartition(".")
    whole = getattr(__import__("pkgutil").resolve_name(owner), name)

    def broken(*arguments, **named):
        if concerns_first((*arguments, *named.values())):
            hits.append(place)
            raise error
        return whole(*arguments, **named)

    monkeypatch.setattr(place, broken)
    monkeypatch.setattr("altojax.cluster.service.progress_monitor.ProgressMonitor.is_due", lambda self, job: True)
    engine = ScriptedEngine({"a": 2}, holds=True)
    said: list[str] = []
    orchestrator = orchestrate(queue, engine, retries=1, node_retries=1, say=said.append)
    for _ in range(4):
        orchestrator.turn()
    engine.script = {("sums-1", n): Report("sums-1", n, "failed", "its own") for n in range(1, 9)}
    engine.holds = False
    finish(orchestrator)
    monkeypatch.undo()
    assert hits or place.endswith("concerns"), "the fault was never met"
    found = snapshot(queue)
    first, second = found.job("sums-1"), found.job("sums-2")
    assert second is not None and second.status == "ended"
    assert first is not None and first.status in ("failed", "refused") and first.reason
    assert len(said) == len(set(said))
    finish(orchestrate(queue, ScriptedEngine({"a": 2})))


def test_an_attempt_that_cannot_be_told_to_stop_is_told_again(tmp_path, monkeypatch):
    put(tmp_path / "queue", tmp_path / "x")
    engine = ScriptedEngine({"a": 1}, holds=True)
    orchestrator = orchestrate(tmp_path / "queue", engine)
    orchestrator.turn()
    stop, tries = ScriptedEngine.stop, []

    def deaf(self, job, attempt):
        tries.append(job)
        if len(tries) < 3:
            raise OSError(24, "Too many open files")
        stop(self, job, attempt)

    monkeypatch.setattr("queues.ScriptedEngine.stop", deaf)
    ask(tmp_path / "queue", "sums-1", "cancel", ANN)
    finish(orchestrator)
    assert statuses(tmp_path / "queue") == {"sums-1": "cancelled"} and len(tries) == 3


def test_what_a_predecessor_left_is_taken_over_although_one_of_it_cannot_be(tmp_path, monkeypatch):
    for name in ("x", "y"):
        put(tmp_path / "queue", tmp_path / name)
    first = orchestrate(tmp_path / "queue", ScriptedEngine({"a": 2}, holds=True))
    first.turn()
    leave(first)
    (tmp_path / "queue" / "jobs" / "sums-1" / "started-1").unlink()  # a scripted engine asserts that it is there
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 2})))
    assert statuses(tmp_path / "queue") == {"sums-1": "ended", "sums-2": "ended"}
    spans = [span for span in snapshot(tmp_path / "queue").spans if span.job == "sums-1"]
    assert [span.outcome for span in spans] == ["failed", "ended"] and "cannot be started" in spans[0].reason


@pytest.mark.parametrize("journal", [b"", b"no database", None])
def test_a_folder_that_holds_what_no_run_of_ours_left_is_that_tasks_matter(tmp_path, journal):
    """None is a run of the other program, whose checkpoint knows of no trials."""
    run_dir = tmp_path / "x"
    if journal is None:
        with Journal.open(run_dir, config_text="a: 1\n", identity="x") as made:
            made.append(0, [Event("run_start", payload={"device": "?"})])
            made.commit_checkpoint(1, {"round": 3}, [])
    else:
        run_dir.mkdir()
        (run_dir / "journal.db").write_bytes(journal)
    put(tmp_path / "queue", run_dir)
    put(tmp_path / "queue", tmp_path / "y")
    engine = ScriptedEngine({"a": 2}, {("sums-1", n): Report("sums-1", n, "failed", "not mine") for n in range(1, 9)})
    finish(orchestrate(tmp_path / "queue", engine, retries=0))
    assert statuses(tmp_path / "queue") == {"sums-1": "failed", "sums-2": "ended"}


def test_data_where_the_operator_may_not_go_is_refused_with_its_key(tmp_path, monkeypatch):
    closed = tmp_path / "closed" / "rows.jsonl"
    exists = Path.exists

    def guarded(self, **named):
        if self == closed:
            raise PermissionError(13, "Permission denied", str(self))
        return exists(self, **named)

    monkeypatch.setattr(Path, "exists", guarded)
    put(tmp_path / "queue", tmp_path / "x", train=str(closed))
    put(tmp_path / "queue", tmp_path / "y")
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1})))
    job = snapshot(tmp_path / "queue").job("sums-1")
    assert job is not None and job.status == "refused"
    assert job.reason.startswith(f"tasks.0.data.train: {closed} cannot be entered")


@pytest.mark.parametrize("path", ["~/rows.jsonl", "pyproject.toml"])
def test_a_path_that_depends_on_who_reads_it_is_refused(tmp_path, path):
    put(tmp_path / "queue", tmp_path / "x", train=path)
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1})))
    job = snapshot(tmp_path / "queue").job("sums-1")
    assert job is not None and job.status == "refused" and "expected an absolute path" in job.reason


@pytest.mark.parametrize("change", [{"samples": float("inf")}, {"samples": float("nan")}, {"samples": 1e400}])
def test_numbers_that_no_store_can_keep_are_refused(tmp_path, change):
    submit(tmp_path / "queue", replace(submission(config_of(tmp_path / "x")), **change), ANN)
    put(tmp_path / "queue", tmp_path / "y")
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1})))
    assert statuses(tmp_path / "queue") == {"sums-1": "refused", "sums-2": "ended"}
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1})))


def test_a_request_that_no_program_of_ours_wrote_can_still_be_listed(tmp_path):
    @dataclass(frozen=True)
    class Scrawl:
        tasks: tuple[str, ...] = ("sums",)

        def to_json(self) -> str:
            return '{"config": 7}'

    submit(tmp_path / "queue", Scrawl(), ANN)  # type: ignore[arg-type]
    assert statuses(tmp_path / "queue") == {"sums-1": "submitted"}
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1})))
    with_reader = Reader(tmp_path / "queue")
    assert [job.status for job in with_reader.snapshot().jobs] == ["refused"]
    with_reader.close()


def test_names_of_tasks_fit_file_systems(tmp_path):
    config_of(tmp_path / "x", name="a" * LONGEST_NAME)
    with pytest.raises(ValueError, match="at most 100 characters"):
        config_of(tmp_path / "x", name="a" * (LONGEST_NAME + 1))


def test_an_error_that_passes_is_waited_out_and_one_that_lasts_ends_its_attempt(tmp_path):
    now = [0.0]
    faults = Faults(lasts_s=60.0, clock=lambda: now[0])

    def look(key, error):
        with faults.of(key):
            if error is not None:
                raise error

    look(("x", 1), OSError("once"))
    now[0] = 59.0
    look(("x", 1), None)
    look(("y", 1), OSError("first"))
    now[0] = 119.0
    look(("y", 1), OSError("last"))
    assert faults.lasting() == {("y", 1): "OSError: last"}


def test_a_process_is_not_taken_for_dead_when_there_is_no_descriptor_to_look_with(monkeypatch):
    mine = Identity.of(os.getpid())
    assert mine is not None

    def full(self, *arguments, **named):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "read_text", full)
    with pytest.raises(OSError, match="Too many"):
        mine.end()


def test_a_damaged_note_of_a_process_fails_its_attempt_alone(tmp_path):
    from altojax.cluster.engines.engine import Order

    engine = SupervisedEngine(LocalEngine(gpus=2))
    order = Order("x", 1, tmp_path, {engine.nodes().__iter__().__next__(): (0,)})
    (tmp_path / "attempt-1.pid.json").write_text(json.dumps({"pid": "many"}))
    engine.start(order)
    (report,) = engine.poll()
    assert (report.outcome, report.blame) == ("failed", "node") and "cannot be started" in report.reason
    engine.close()


def test_what_was_submitted_reads_back(tmp_path):
    one = submission(config_of(tmp_path / "x"))
    assert Submission.from_json(one.to_json()) == one


def running(run_dir: Path, device: str) -> Journal:
    journal = Journal.open(run_dir, config_text="a: 1\n", identity="x")
    journal.append(0, [Event("run_start", payload={"device": device}, wall_s=time.time() + 60)])
    pace = {"samples": 100, "steps": 10, "seconds": 5.0, "step_s": 0.1, "sample_s": 0.01}
    spent = {"evaluation_s": 1.0, "training_s": 10.0, "setup_s": 1.0}
    journal.set("clock", {"pace": pace, "base": 0, "devices": 1, "capacity_tokens": 1000, **spent})
    return journal


def test_half_a_character_in_a_running_tasks_journal_ends_nobody_else(tmp_path):
    for name, device in (("x", "1 × \ud800"), ("y", "1 × cpu")):
        running(tmp_path / name, device).close()
        put(tmp_path / "queue", tmp_path / name)
    said: list[str] = []
    orchestrator = orchestrate(tmp_path / "queue", ScriptedEngine({"a": 2}), say=said.append)
    finish(orchestrator)
    assert statuses(tmp_path / "queue") == {"sums-1": "ended", "sums-2": "ended"}
    assert [line.partition(": Val")[0] for line in said] == ["sums-1: its speed cannot be predicted"]


def test_a_record_that_would_fill_the_memory_of_who_serves_is_not_read(tmp_path, monkeypatch):
    for module in ("service.progress_monitor", "task_estimates.speed_profile"):
        monkeypatch.setattr(f"altojax.cluster.{module}.RECORD_BYTES", 10_000)
    with running(tmp_path / "x", "1 × cpu") as journal:
        config = config_of(tmp_path / "x")
        assert read_standing(tmp_path / "x", config.early_exit) is not None
        journal.set("trials", [[]] * 10_000)
        assert read_standing(tmp_path / "x", config.early_exit) is None
