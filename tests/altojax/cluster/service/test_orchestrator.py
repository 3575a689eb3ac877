"""The orchestrator: what users ask for and what becomes of attempts, from requests to the engine and back."""

import time
from dataclasses import replace

import pytest
from queues import (
    ANN,
    ScriptedEngine,
    ask,
    config_of,
    finish,
    leave,
    log_of,
    orchestrate,
    put,
    snapshot,
    statuses,
    submission,
    submit,
)

from altojax.cluster.engines.engine import Report
from altojax.cluster.service.queue.client import OperatorClient
from altojax.config.tune_config import TuneConfig
from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal
from jaxrun.store.records import Event


def turns(orchestrator, count: int = 3) -> None:
    for _ in range(count):
        orchestrator.turn()


def test_tasks_wait_while_nobody_serves_and_run_when_somebody_does(tmp_path):
    for number in range(3):
        put(tmp_path / "queue", tmp_path / str(number))
    assert statuses(tmp_path / "queue") == {"sums-1": "submitted", "sums-2": "submitted", "sums-3": "submitted"}
    engine = ScriptedEngine({"a": 2}, holds=True)
    orchestrator = orchestrate(tmp_path / "queue", engine)
    turns(orchestrator, 1)
    assert sorted(statuses(tmp_path / "queue").values()) == ["running", "running", "waiting"]
    assert {order.gpus["a"] for order in engine.running.values()} == {(0,), (1,)}
    found = snapshot(tmp_path / "queue")
    waiting = next(job for job in found.jobs if job.status == "waiting")
    assert waiting.start_s is not None and waiting.end_s is not None and waiting.start_s > found.now_s
    assert found.gap is not None and found.gap >= 0 and found.alive
    engine.holds = False
    finish(orchestrator)
    found = snapshot(tmp_path / "queue")
    assert {job.status for job in found.jobs} == {"ended"}
    assert [span.outcome for span in found.spans] == ["ended"] * 3
    assert not found.alive


def test_the_worker_gets_the_run_that_was_submitted(tmp_path):
    config = config_of(tmp_path / "out")
    submit(tmp_path / "queue", submission(config), ANN)
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1})))
    assert load_config(TuneConfig, tmp_path / "queue" / "jobs" / "sums-1" / "task.yaml") == config


def test_pause_resume_and_cancel_reach_a_running_task(tmp_path):
    put(tmp_path / "queue", tmp_path / "x")
    engine = ScriptedEngine({"a": 1}, holds=True)
    orchestrator = orchestrate(tmp_path / "queue", engine)
    turns(orchestrator, 1)
    for wish, status in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        request = ask(tmp_path / "queue", "sums-1", wish, ANN)
        turns(orchestrator)
        answer = orchestrator.store.answer(request.id)
        assert answer is not None and not answer.error
        assert statuses(tmp_path / "queue") == {"sums-1": status}
    late = ask(tmp_path / "queue", "sums-1", "pause", ANN)
    turns(orchestrator)
    answer = orchestrator.store.answer(late.id)
    assert answer is not None and "is cancelled already" in answer.error
    assert [span.outcome for span in snapshot(tmp_path / "queue").spans] == ["halted", "halted"]
    leave(orchestrator)


def test_what_fails_is_tried_again_and_given_up_with_its_reason(tmp_path):
    put(tmp_path / "queue", tmp_path / "x")
    put(tmp_path / "queue", tmp_path / "y")
    script = {("sums-1", n): Report("sums-1", n, "failed", f"no luck {n}") for n in (1, 2, 3)}
    script[("sums-2", 1)] = Report("sums-2", 1, "failed", "killed by the kernel", "node")
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1}, script), retries=2))
    found = snapshot(tmp_path / "queue")
    failed, ended = found.job("sums-1"), found.job("sums-2")
    assert failed is not None and (failed.status, failed.attempt) == ("failed", 3)
    assert "no luck 3" in failed.reason
    assert ended is not None and (ended.status, ended.attempt) == ("ended", 2)
    reasons = [span.reason for span in found.spans if span.job == "sums-1"]
    assert reasons == ["no luck 1", "no luck 2", "no luck 3"]


def test_a_node_that_comes_later_is_used_and_one_that_goes_is_not(tmp_path):
    put(tmp_path / "queue", tmp_path / "x", gpus=(4,))
    engine = ScriptedEngine({"a": 4, "b": 1}, holds=True)
    orchestrator = orchestrate(tmp_path / "queue", engine)
    turns(orchestrator, 1)
    assert engine.running["sums-1", 1].gpus == {"a": (0, 1, 2, 3)}
    engine.there = {"b": 1}
    engine.script = {("sums-1", 1): Report("sums-1", 1, "failed", "node a is gone", "node")}
    turns(orchestrator)
    assert statuses(tmp_path / "queue") == {"sums-1": "waiting"}
    assert snapshot(tmp_path / "queue").nodes == {"b": 1}
    engine.there, engine.script, engine.holds = {"b": 4}, {}, False
    finish(orchestrator)
    assert statuses(tmp_path / "queue") == {"sums-1": "ended"}


def test_a_task_that_could_never_run_is_refused(tmp_path):
    put(tmp_path / "queue", tmp_path / "x", gpus=(16,))
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 8})))
    job = snapshot(tmp_path / "queue").job("sums-1")
    assert job is not None and job.status == "refused" and job.reason.startswith("queue.gpus: ")


def test_a_request_that_altojax_did_not_write_is_refused_and_stops_nothing(tmp_path):
    queue = tmp_path / "queue"
    bad = submission(config_of(tmp_path / "x"))
    for change in ({"config": "{}"}, {"workloads": "[]"}, {"workloads": "?"}, {"output_dir": "elsewhere"}):
        submit(queue, replace(bad, **change), ANN)
    put(queue, tmp_path / "y")
    finish(orchestrate(queue, ScriptedEngine({"a": 1})))
    refused = dict.fromkeys(("sums-1", "sums-2", "sums-3", "sums-4"), "refused")
    assert statuses(queue) == {"sums-5": "ended", **refused}


def test_running_tasks_outlive_the_orchestrator_and_are_taken_over(tmp_path):
    put(tmp_path / "queue", tmp_path / "x")
    first = orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1}, holds=True))
    turns(first, 1)
    leave(first)
    assert statuses(tmp_path / "queue") == {"sums-1": "running"}
    engine = ScriptedEngine({"a": 1})
    second = orchestrate(tmp_path / "queue", engine)
    assert list(engine.running) == [("sums-1", 1)]
    finish(second)
    assert len(snapshot(tmp_path / "queue").spans) == 1


def test_one_that_is_told_to_halt_them_leaves_them_to_go_on_later(tmp_path):
    put(tmp_path / "queue", tmp_path / "x")
    first = orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1}, holds=True))
    turns(first, 1)
    first.halt()
    first.wind_down()
    assert not first.running
    leave(first)
    assert statuses(tmp_path / "queue") == {"sums-1": "waiting"}
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1})))
    assert [(span.attempt, span.outcome) for span in snapshot(tmp_path / "queue").spans] == [
        (1, "halted"),
        (2, "ended"),
    ]


def test_one_that_was_taken_for_dead_stops_before_it_starts_anything(tmp_path):
    queue, engine = tmp_path / "queue", ScriptedEngine({"a": 1}, holds=True)
    old = orchestrate(queue, engine)
    turns(old, 1)
    old.store._database.execute("UPDATE lease SET until_s = ?", (time.time() - 1,))
    new = orchestrate(queue, ScriptedEngine({"a": 1}, holds=True))
    before = log_of(queue)
    put(queue, tmp_path / "x")
    with pytest.raises(UserError, match="has taken this queue over"):
        old.turn()
    assert not engine.running and log_of(queue) == before
    turns(new, 1)
    assert statuses(queue) == {"sums-1": "running"}
    leave(new)
    old.close()
    old.store.close()


def test_a_second_look_reads_only_what_is_new(tmp_path):
    from altojax.cluster.service.queue.queue_view import Reader

    put(tmp_path / "queue", tmp_path / "x")
    reader = Reader(tmp_path / "queue")
    assert [job.status for job in reader.snapshot().jobs] == ["submitted"]
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1})))
    assert [job.status for job in reader.snapshot().jobs] == ["ended"]
    put(tmp_path / "queue", tmp_path / "y")
    assert [job.status for job in reader.snapshot().jobs] == ["ended", "submitted"]
    assert reader.snapshot().jobs == snapshot(tmp_path / "queue").jobs
    reader.close()


def test_who_may_only_read_the_folder_sees_what_is_new_as_well(tmp_path, monkeypatch):
    from altojax.cluster.service.queue.queue_view import Reader

    put(tmp_path / "queue", tmp_path / "x")
    monkeypatch.setattr("jaxrun.store.database.os.access", lambda path, *_, **__: "queue" not in str(path))
    reader = Reader(tmp_path / "queue")
    assert [job.status for job in reader.snapshot().jobs] == ["submitted"]
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1})))
    put(tmp_path / "queue", tmp_path / "y")
    assert [job.status for job in reader.snapshot().jobs] == ["ended", "submitted"]
    reader.close()


def test_nobody_else_reads_what_attempts_leave_in_the_queue(tmp_path):
    put(tmp_path / "queue", tmp_path / "x")
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1})))
    assert (tmp_path / "queue" / "jobs").stat().st_mode & 0o077 == 0


def test_where_there_is_no_queue_that_is_said(tmp_path):
    with pytest.raises(UserError, match="no queue here"):
        snapshot(tmp_path)
    with pytest.raises(UserError, match="no queue here"):
        OperatorClient(tmp_path / "nowhere").ask("sums-1", "cancel")


def test_what_a_task_has_measured_is_kept_and_corrects_what_waits(tmp_path):
    queue = tmp_path / "queue"
    for name in ("x", "y"):
        put(queue, tmp_path / name, gpus=(1, 2))
    engine = ScriptedEngine({"a": 1}, holds=True)
    orchestrator = orchestrate(queue, engine)
    orchestrator.turn()
    tasks = orchestrator.scheduler.tasks
    (runs,), (waits,) = ([task for task in tasks.values() if task.status == one] for one in ("running", "waiting"))
    before = dict(waits.job.speeds)
    run_dir = orchestrator.jobs[runs.job.name].output_dir
    with Journal.open(run_dir, config_text="a: 1\n", identity="x") as journal:
        journal.append(0, [Event("run_start", payload={"device": "1 × cpu"})])
        pace = {"steps": 50, "samples": 100, "seconds": 500.0, "step_s": None, "sample_s": None}
        times = {"evaluation_s": 0.0, "training_s": 500.0, "setup_s": 7.0}
        journal.set("clock", {"pace": pace, "base": 0, "devices": 1, "capacity_tokens": 512, **times})
    engine.script = {(runs.job.name, 1): Report(runs.job.name, 1, "ended")}
    orchestrator.turn()
    slower = {gpus: speed / waits.job.speeds[gpus] for gpus, speed in before.items()}
    assert all(ratio > 100 for ratio in slower.values()), slower
    assert len(orchestrator.store.profiles()) == 1
    engine.holds = False
    finish(orchestrator)
    put(queue, tmp_path / "z", gpus=(1, 2))
    again = orchestrate(queue, ScriptedEngine({"a": 1}, holds=True))
    again.turn()
    known = again.scheduler.tasks["sums-3"].job
    assert known.speeds == pytest.approx(waits.job.speeds) and known.setup_s == 7.0
    leave(again)
