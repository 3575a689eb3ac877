"""Tasks that share a run: one attempt for all, to each its own, whatever its user or its worker does meanwhile."""

import time

import pytest
from queues import ANN, BOB, ScriptedEngine, ask, finish, leave, orchestrate, put, snapshot, statuses

from altojax.cluster.engines.engine import Report
from altojax.config.tune_config import TuneConfig
from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError

WHOLE = "sums-1-and-1-more"


@pytest.fixture
def delivered(monkeypatch):
    """Names of the tasks that were delivered, in order."""
    names: list[str] = []
    monkeypatch.setattr("altojax.cluster.service.orchestrator.deliver", lambda shared, job, config: names.append(job))
    return names


@pytest.fixture
def queue(tmp_path):
    for name in ("x", "y"):
        put(tmp_path / "queue", tmp_path / name, key="one")
    return tmp_path / "queue"


def test_tasks_of_one_family_run_as_one_and_each_gets_its_own(queue, tmp_path, delivered):
    engine = ScriptedEngine({"a": 1}, holds=True)
    orchestrator = orchestrate(queue, engine)
    orchestrator.turn()
    assert statuses(queue) == {"sums-1": "merged", "sums-2": "merged", WHOLE: "running"}
    shared = load_config(TuneConfig, queue / "jobs" / WHOLE / "task.yaml")
    assert [task.name for task in shared.tasks] == ["sums-1.sums", "sums-2.sums"]
    assert shared.output_dir == str(queue / "jobs" / WHOLE / "run")
    member = snapshot(queue).job("sums-2")
    assert member is not None
    assert (member.journal_dir, member.tasks) == (shared.output_dir, ("sums-2.sums",))
    assert member.output_dir == str(tmp_path / "y")
    (queue / "jobs" / WHOLE / "run").mkdir()
    engine.holds = False
    finish(orchestrator)
    assert delivered == ["sums-1", "sums-2"]
    assert set(statuses(queue).values()) == {"ended"}
    assert not (queue / "jobs" / WHOLE / "run").exists(), "what was delivered need not be kept twice"
    member = snapshot(queue).job("sums-2")
    assert member is not None
    assert (member.journal_dir, member.tasks) == (str(tmp_path / "y"), ("sums",))


def test_a_shared_run_is_removed_even_where_serving_ends_before_its_turn_comes(queue, delivered, monkeypatch):
    orchestrator = orchestrate(queue, ScriptedEngine({"a": 1}))
    tidy = orchestrator._tidy

    def behind_another(name: str) -> None:
        orchestrator._deliveries._thread.submit(time.sleep, 0.2)
        tidy(name)

    monkeypatch.setattr(orchestrator, "_tidy", behind_another)
    (queue / "jobs" / WHOLE / "run").mkdir(parents=True)
    finish(orchestrator)
    assert not (queue / "jobs" / WHOLE / "run").exists()


def test_other_tenants_tasks_and_those_that_have_begun_stay_apart(tmp_path, delivered):
    queue = tmp_path / "queue"
    put(queue, tmp_path / "x", key="one")
    put(queue, tmp_path / "y", key="one", caller=BOB)
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "journal.db").touch()
    put(queue, tmp_path / "z", key="one")
    finish(orchestrate(queue, ScriptedEngine({"a": 1})))
    assert statuses(queue) == dict.fromkeys(("sums-1", "sums-2", "sums-3"), "ended")


def test_a_member_that_is_cancelled_gets_nothing_and_the_others_go_on(queue, delivered):
    engine = ScriptedEngine({"a": 1}, holds=True)
    orchestrator = orchestrate(queue, engine)
    orchestrator.turn()
    ask(queue, "sums-1", "cancel", ANN)
    orchestrator.turn()
    assert statuses(queue) == {"sums-1": "cancelled", "sums-2": "merged", WHOLE: "running"}
    engine.holds = False
    finish(orchestrator)
    assert delivered == ["sums-2"]
    assert statuses(queue) == {"sums-1": "cancelled", "sums-2": "ended", WHOLE: "ended"}


def test_when_all_members_are_cancelled_the_run_is_stopped(queue, delivered):
    orchestrator = orchestrate(queue, ScriptedEngine({"a": 1}, holds=True))
    orchestrator.turn()
    for name in ("sums-1", "sums-2"):
        ask(queue, name, "cancel", ANN)
    for _ in range(3):
        orchestrator.turn()
    assert set(statuses(queue).values()) == {"cancelled"}
    assert delivered == []
    leave(orchestrator)


def test_what_cannot_be_delivered_is_tried_again(queue, monkeypatch):
    tries: list[str] = []

    def deliver(shared, job, config) -> None:
        tries.append(job)
        if len(tries) == 2:
            raise UserError("disk: no space left")

    monkeypatch.setattr("altojax.cluster.service.orchestrator.deliver", deliver)
    finish(orchestrate(queue, ScriptedEngine({"a": 1})))
    assert tries == ["sums-1", "sums-2", "sums-1", "sums-2"]
    assert set(statuses(queue).values()) == {"ended"}
    reasons = [span.reason for span in snapshot(queue).spans]
    assert reasons == ["cannot be delivered: disk: no space left", ""]


def test_a_shared_run_that_is_given_up_lets_each_task_try_alone(queue, delivered):
    script = {(WHOLE, n): Report(WHOLE, n, "failed", "out of memory") for n in (1, 2)}
    finish(orchestrate(queue, ScriptedEngine({"a": 1}, script), retries=1))
    assert statuses(queue) == {"sums-1": "ended", "sums-2": "ended", WHOLE: "failed"}
    assert delivered == []
    assert [span.job for span in snapshot(queue).spans] == [WHOLE, WHOLE, "sums-1", "sums-2"]
