"""Tenants are kept apart: whatever goes through the queue, nobody reads, overwrites or stops what is another's."""

import pytest
from queues import ANN, BOB, ScriptedEngine, finish, leave, orchestrate, put, snapshot, statuses

from altojax.service.asking import ask, check_known
from altojax.service.requests import Request, Requests
from altojax.service.rights import Caller, may_speak_for, tenant_of
from harness.errors import UserError

USERS = {"speech": ["ann", "cid"], "vision": ["bob"]}
CID = Caller(2003, "cid")


def reason_of(queue, name: str) -> str:
    job = snapshot(queue).job(name)
    assert job is not None and job.status == "refused", job
    return job.reason


def served(queue, **kept) -> None:
    finish(orchestrate(queue, ScriptedEngine({"a": 4}), users=USERS, **kept))


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A queue whose operator is neither Ann nor Bob; their tasks of today are in it."""
    folder = tmp_path / "queue"
    put(folder, tmp_path / "ann" / "run", tenant="speech")
    put(folder, tmp_path / "bob" / "run", caller=BOB)
    served(folder)
    assert statuses(folder) == {"sums-1": "ended", "sums-2": "ended"}
    (tmp_path / "ann" / "run" / "sums").mkdir(parents=True)
    (tmp_path / "ann" / "run" / "metrics.jsonl").touch()
    return folder


def test_a_tenant_with_users_is_for_them_alone():
    assert tenant_of(ANN, None, USERS) == "speech"
    assert tenant_of(ANN, "speech", USERS) == "speech"
    assert tenant_of(ANN, "free", USERS) == "free"
    with pytest.raises(UserError, match=r"queue\.tenant: 'vision' is not for user ann, expected one of speech, ann"):
        tenant_of(ANN, "vision", USERS)
    with pytest.raises(UserError, match="missing, expected one of yours: speech, vision"):
        tenant_of(ANN, None, {**USERS, "vision": ["ann"]})
    assert tenant_of(Caller(0, "root", True), "vision", USERS) == "vision"


def test_a_tenant_that_has_the_name_of_a_user_is_for_that_user():
    assert not may_speak_for(ANN, "root", {})
    assert may_speak_for(Caller(7, "root"), "root", {})


def test_a_tenant_cannot_submit_in_anothers_name(tmp_path, queue):
    put(queue, tmp_path / "x", caller=BOB, tenant="speech")
    served(queue)
    assert reason_of(queue, "sums-3").startswith("queue.tenant: 'speech' is not for user bob")


@pytest.mark.parametrize("path", ["run", "run/metrics.jsonl", "link", "."])
@pytest.mark.parametrize("key", ["train", "model"])
def test_a_task_cannot_read_what_another_tenants_task_wrote(tmp_path, queue, path, key):
    (tmp_path / "ann" / "link").symlink_to(tmp_path / "ann" / "run" / "sums")
    put(queue, tmp_path / "x", caller=BOB, **{key: str(tmp_path / "ann" / path)})
    put(queue, tmp_path / "y", caller=CID, **{key: str(tmp_path / "ann" / path)})
    served(queue)
    assert "is output of tenant 'speech'" in reason_of(queue, "sums-3")
    assert statuses(queue)["sums-4"] == "ended", "one of the same tenant may"


@pytest.mark.parametrize("path", ["run", "run/sums/best", "", "link/new"])
def test_a_task_cannot_write_where_another_tenants_task_wrote(tmp_path, queue, path):
    (tmp_path / "ann" / "link").symlink_to(tmp_path / "ann" / "run")
    put(queue, tmp_path / "ann" / path, caller=BOB)
    served(queue)
    assert "belongs to tenant 'speech'" in reason_of(queue, "sums-3")


@pytest.mark.parametrize("path", ["", "jobs/sums-1", "jobs/sums-1/attempt-1.log"])
def test_a_task_can_neither_read_nor_write_what_the_queue_keeps(tmp_path, queue, path):
    (queue / "jobs" / "sums-1" / "attempt-1.log").touch()
    put(queue, tmp_path / "x", train=str(queue / path))
    put(queue, queue / path)
    served(queue)
    assert "lies in the queue's folder" in reason_of(queue, "sums-3")
    assert "and the queue's folder" in reason_of(queue, "sums-4")


@pytest.mark.parametrize("wish", ["cancel", "pause", "resume"])
def test_a_tenant_cannot_cancel_pause_or_resume_anothers_task(tmp_path, queue, wish):
    engine = ScriptedEngine({"a": 4}, holds=True)
    orchestrator = orchestrate(queue, engine, users=USERS)
    put(queue, tmp_path / "ann" / "second", tenant="speech")
    orchestrator.turn()
    with pytest.raises(UserError, match="belongs to tenant 'speech', expected a task of yours"):
        ask(queue, "sums-3", wish, BOB)
    # Neither does it help to write the request past that check.
    listed = Requests.open(queue)
    number = listed.append(Request(wish, "sums-3", None, BOB.uid, BOB.user, 0.0))
    listed.close()
    orchestrator.turn()
    answer = orchestrator.store.answer(number)
    assert answer is not None and "belongs to tenant 'speech'" in answer.error
    assert statuses(queue)["sums-3"] == "running"
    ask(queue, "sums-3", "cancel", CID)
    for _ in range(3):
        orchestrator.turn()
    assert statuses(queue)["sums-3"] == "cancelled"
    leave(orchestrator)


def test_a_task_that_nobody_has_taken_yet_is_its_users_too(tmp_path):
    put(tmp_path / "queue", tmp_path / "x")
    check_known(tmp_path / "queue", "sums-1", ANN)
    with pytest.raises(UserError, match="was submitted by ann"):
        ask(tmp_path / "queue", "sums-1", "cancel", BOB)
    with pytest.raises(UserError, match=r"has no task 'sum-1' \(did you mean 'sums-1'\?\)"):
        ask(tmp_path / "queue", "sum-1", "cancel", ANN)


def test_two_live_tasks_never_share_a_folder_and_one_may_follow_the_other(tmp_path):
    queue = tmp_path / "queue"
    put(queue, tmp_path / "x")
    put(queue, tmp_path / "x" / "inner")
    served(queue)
    assert "is where sums-1 writes" in reason_of(queue, "sums-2")
    put(queue, tmp_path / "x")
    served(queue)
    assert statuses(queue)["sums-3"] == "ended"
