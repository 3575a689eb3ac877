"""Tenants are kept apart: whatever goes through the queue, nobody reads, overwrites or stops what is another's."""

import os
from dataclasses import replace

import pytest
from queues import BOB, Caller, ScriptedEngine, ask, finish, leave, orchestrate, put, snapshot, statuses

from altojax.cluster.service.verbs.serve import ServeConfig
from altojax.cluster.tenancy.members import Members, TenantSection
from jaxrun.config.config import check_config
from jaxrun.process.errors import UserError

CID, DAN, EVE = Caller(2003, "cid"), Caller(2004, "dan"), Caller(2005, "eve")
OPERATOR = 4000
MEMBERS = Members(OPERATOR, {"speech": frozenset({2001, 2003}), "vision": frozenset({2002})})


def reason_of(queue, name: str) -> str:
    job = snapshot(queue).job(name)
    assert job is not None and job.status == "refused", job
    return job.reason


def served(queue, **kept) -> None:
    finish(orchestrate(queue, ScriptedEngine({"a": 4}), members=MEMBERS, **kept))


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


def test_a_user_submits_for_tenants_that_name_the_user_and_no_others():
    assert MEMBERS.tenant_of(2001, None) == MEMBERS.tenant_of(2001, "speech") == "speech"
    for name in ("vision", "freebie"):
        with pytest.raises(UserError, match=rf"queue\.tenant: '{name}' is no tenant of user 2001, expected one of"):
            MEMBERS.tenant_of(2001, name)
    both = Members(OPERATOR, {"speech": frozenset({2001}), "vision": frozenset({2001})})
    with pytest.raises(UserError, match="missing, expected one of yours: speech, vision"):
        both.tenant_of(2001, None)


def test_a_user_whom_no_tenant_names_is_refused_unless_one_is_for_such_users():
    for given in (None, "speech", "eve"):
        with pytest.raises(UserError, match="user 2005: belongs to no tenant of this queue"):
            MEMBERS.tenant_of(EVE.uid, given)
    guests = replace(MEMBERS, uids={**MEMBERS.uids, "guests": frozenset()}, default="guests")
    assert guests.tenant_of(EVE.uid, None) == "guests"
    with pytest.raises(UserError, match="'guests' is no tenant of user 2001"):
        guests.tenant_of(2001, "guests")
    with pytest.raises(UserError, match="'speech' is no tenant of user 2005"):
        guests.tenant_of(EVE.uid, "speech")


def test_a_default_tenant_has_a_quota_and_there_is_one_at_most():
    with pytest.raises(UserError, match="quota is missing"):
        check_config(ServeConfig, {"tenants": {"guests": {"default": True}}}, "queue.yaml")
    guests = {"default": True, "quota": 1}
    with pytest.raises(UserError, match="a, b are the default, expected one of them to be"):
        check_config(ServeConfig, {"tenants": {"a": guests, "b": guests}}, "queue.yaml")


def test_without_tenants_a_queue_is_its_operators_alone():
    alone = Members(OPERATOR)
    assert alone.tenant_of(OPERATOR, None) == str(OPERATOR)
    with pytest.raises(UserError, match="user 2001: belongs to no tenant"):
        alone.tenant_of(2001, None)
    with pytest.raises(UserError, match="'freebie' is no tenant of user 4000"):
        alone.tenant_of(OPERATOR, "freebie")


def test_the_operator_submits_for_any_tenant_of_the_file():
    assert MEMBERS.tenant_of(OPERATOR, "vision") == "vision"
    with pytest.raises(UserError, match="missing, expected one of yours: speech, vision"):
        MEMBERS.tenant_of(OPERATOR, None)
    with pytest.raises(UserError, match="'freebie' is no tenant of user 4000"):
        MEMBERS.tenant_of(OPERATOR, "freebie")


def test_users_and_groups_are_named_or_numbered_and_must_be_there():
    me = os.getuid()
    by_group = Members.of({"mine": TenantSection(groups=[os.getgid()]), "two": TenantSection(users=["root", 7])}, 4000)
    assert by_group.uids["two"] == {0, 7}
    assert "mine" in by_group.naming(me) and by_group.naming(54321) == ()
    for key, error in (("users", "is no user of this host"), ("groups", "is no group of this host")):
        with pytest.raises(UserError, match=rf"tenants\.x\.{key}\.0: 'nobody-has-this-name' {error}"):
            Members.of({"x": TenantSection.model_validate({key: ["nobody-has-this-name"]})}, 4000)


def test_strangers_of_the_default_tenant_are_apart_from_each_other():
    guests = replace(MEMBERS, uids={**MEMBERS.uids, "guests": frozenset({2004})}, default="guests")
    assert guests.share(EVE.uid, "guests", EVE.uid) and not guests.share(EVE.uid, "guests", 2006)
    assert guests.share(DAN.uid, "guests", EVE.uid), "whom it names sees all of it"
    assert guests.apart(EVE.uid, "guests", 2006, "guests") and not guests.apart(EVE.uid, "guests", EVE.uid, "guests")
    assert not MEMBERS.apart(2001, "speech", 2003, "speech") and MEMBERS.apart(2001, "speech", 2002, "vision")


def test_a_tenant_cannot_submit_in_anothers_name(tmp_path, queue):
    put(queue, tmp_path / "x", caller=BOB, tenant="speech")
    served(queue)
    assert reason_of(queue, "sums-3").startswith("queue.tenant: 'speech' is no tenant of user 2002")


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
    orchestrator = orchestrate(queue, engine, members=MEMBERS)
    put(queue, tmp_path / "ann" / "second", tenant="speech")
    orchestrator.turn()
    refused = ask(queue, "sums-3", wish, BOB)
    orchestrator.turn()
    answer = orchestrator.store.answer(refused.id)
    assert answer is not None and "belongs to tenant 'speech', expected a task of yours" in answer.error
    assert statuses(queue)["sums-3"] == "running"
    ask(queue, "sums-3", "cancel", CID)
    for _ in range(3):
        orchestrator.turn()
    assert statuses(queue)["sums-3"] == "cancelled"
    leave(orchestrator)


def test_two_live_tasks_never_share_a_folder_and_one_may_follow_the_other(tmp_path):
    queue = tmp_path / "queue"
    put(queue, tmp_path / "x")
    put(queue, tmp_path / "x" / "inner")
    served(queue)
    assert "is where sums-1 writes" in reason_of(queue, "sums-2")
    put(queue, tmp_path / "x")
    served(queue)
    assert statuses(queue)["sums-3"] == "ended"
