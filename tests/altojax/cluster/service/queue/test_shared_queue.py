"""A shared queue knows its users by who owns the files they leave, and shows each what is for that user."""

import contextlib
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from queues import ANN, BOB, ME, ScriptedEngine, config_of, finish, leave, orchestrate, put, statuses, submission

from altojax.cli import main
from altojax.cluster.engines.engine import Report
from altojax.cluster.service import reception
from altojax.cluster.service.queue import spool
from altojax.cluster.service.queue.client import UserClient, connect
from altojax.cluster.service.queue.folder import ANSWERS, SPOOL, set_doors
from altojax.cluster.service.queue.spool import Letter, new_letter
from altojax.cluster.service.reception import Reception
from altojax.cluster.tenancy.members import Members
from jaxrun.process.errors import UserError

CID, EVE, OPERATOR = 2003, 2005, 4000
MEMBERS = Members(OPERATOR, {"speech": frozenset({ANN.uid, CID}), "vision": frozenset({BOB.uid})})


class Shared:
    """A shared queue that is served, whose files belong to whom a test says."""

    def __init__(self, folder: Path, members: Members = MEMBERS, **kept) -> None:
        self.folder, self.members = folder, members
        self.owners: dict[str, int] = {}
        self.said: list[str] = []
        self.engine = ScriptedEngine({"a": 4}, **kept)
        self.serve()

    def serve(self) -> None:
        self.orchestrator = orchestrate(self.folder, self.engine, members=self.members, retries=0)
        set_doors(self.folder, shared=True)
        store = self.orchestrator.store
        self.orchestrator._reception = Reception(
            store, self.members, self.said.append, owner=lambda found: self.owners.get(found.token, found.uid)
        )

    def send(self, uid: int, letter: Letter) -> str:
        spool.send(self.folder, letter)
        self.owners[letter.token] = uid
        return letter.token

    def submit(self, uid: int, output_dir: Path, tenant: str | None = None) -> str:
        content = submission(config_of(output_dir)).to_json()
        return self.send(uid, new_letter(self.folder, "submit", "sums", tenant=tenant, content=content))

    def answer(self, token: str) -> spool.Reply:
        self.orchestrator.turn()
        found = spool.await_reply(self.folder, token, 0.0)
        assert found is not None
        return found

    def look(self, uid: int):
        self.orchestrator._reception._read_s = -float("inf")
        seen = self.answer(self.send(uid, new_letter(self.folder, "look"))).seen
        assert seen is not None
        return seen


@pytest.fixture
def shared(in_memory):
    found = Shared(in_memory / "queue", holds=True)
    yield found
    leave(found.orchestrator)


def test_the_owner_of_a_request_is_who_asks_whatever_it_says(shared, in_memory):
    mine = shared.answer(shared.submit(ANN.uid, in_memory / "x"))
    assert (mine.job, mine.error) == ("sums-1", "")
    stored = shared.orchestrator.jobs["sums-1"]
    assert (stored.uid, stored.tenant) == (ANN.uid, "speech")
    refused = shared.answer(shared.submit(BOB.uid, in_memory / "y", "speech"))
    assert "'speech' is no tenant of user 2002, expected one of vision" in refused.error
    for uid, error in ((BOB.uid, "belongs to tenant 'speech'"), (CID, "")):
        assert error in shared.answer(shared.send(uid, new_letter(shared.folder, "cancel", "sums-1"))).error
    shared.orchestrator.turn()
    assert statuses(shared.folder)["sums-1"] == "cancelled"


def test_who_was_answered_sees_it_in_the_queue_at_once(shared, in_memory):
    def look():
        return shared.answer(shared.send(ANN.uid, new_letter(shared.folder, "look"))).seen.mine

    assert not look()
    shared.answer(shared.submit(ANN.uid, in_memory / "x"))
    assert look() == {"sums-1"}


def test_strangers_are_told_so_and_nothing_of_theirs_is_kept(shared, in_memory):
    for letter in (new_letter(shared.folder, "look"), new_letter(shared.folder, "cancel", "sums-1")):
        assert "user 2005: belongs to no tenant" in shared.answer(shared.send(EVE, letter)).error
    assert "belongs to no tenant" in shared.answer(shared.submit(EVE, in_memory / "x")).error
    assert shared.orchestrator.store.requests() == []


def test_with_a_default_tenant_strangers_are_served_within_its_quota(in_memory):
    members = replace(MEMBERS, uids={**MEMBERS.uids, "guests": frozenset()}, default="guests")
    shared = Shared(in_memory / "queue", members, holds=True)
    assert shared.answer(shared.submit(EVE, in_memory / "x")).job == "sums-1"
    assert shared.orchestrator.jobs["sums-1"].tenant == "guests"
    assert "sums-1" in shared.look(EVE).mine and "sums-1" not in shared.look(2006).mine
    leave(shared.orchestrator)


def _link(shared, token, letter):
    (shared.folder / "elsewhere").write_text(letter)
    (shared.folder / SPOOL / token).symlink_to(shared.folder / "elsewhere")


def _second_name(shared, token, letter):
    (shared.folder / "elsewhere").write_text(letter)
    os.link(shared.folder / "elsewhere", shared.folder / SPOOL / token)


def _moved(shared, token, letter):
    """A request that its owner has written under another name."""
    (shared.folder / SPOOL / token).write_text(new_letter(shared.folder, "cancel", "sums-1").model_dump_json())


def _of_another_queue(shared, token, letter):
    (shared.folder / SPOOL / token).write_text(letter.replace("/queue", "/other"))


FILES = {
    "link": _link,
    "second name": _second_name,
    "moved": _moved,
    "of another queue": _of_another_queue,
    "pipe": lambda shared, token, letter: os.mkfifo(shared.folder / SPOOL / token),
    "too large": lambda shared, token, letter: (shared.folder / SPOOL / token).write_text(
        letter + " " * spool.MOST_BYTES
    ),
    "no JSON": lambda shared, token, letter: (shared.folder / SPOOL / token).write_bytes(b"\xff{"),
    "unknown key": lambda shared, token, letter: (shared.folder / SPOOL / token).write_text(
        json.dumps({**json.loads(letter), "uid": 0})
    ),
    "escape characters": lambda shared, token, letter: (shared.folder / SPOOL / token).write_text(
        json.dumps({**json.loads(letter), "job": "\x1b[2Jsums-1"})
    ),
    "deep": lambda shared, token, letter: (shared.folder / SPOOL / token).write_text("[" * 100_000),
}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_what_is_no_request_of_its_owner_is_refused_and_removed(shared, in_memory, make):
    letter = new_letter(shared.folder, "cancel", "sums-1")
    make(shared, letter.token, letter.model_dump_json())
    shared.owners[letter.token] = BOB.uid
    said = shared.answer(letter.token)
    assert said.error.startswith(f"spool/{letter.token}: ") and "\n" not in said.error
    assert shared.orchestrator.store.requests() == [] and not list((shared.folder / SPOOL).iterdir())
    assert shared.answer(shared.submit(ANN.uid, in_memory / "x")).job == "sums-1"


def test_a_folder_in_the_spool_stops_nobody(shared, in_memory):
    (shared.folder / SPOOL / ("a" * 32) / "b").mkdir(parents=True)
    (shared.folder / SPOOL / "notes").mkdir()
    shared.owners["a" * 32] = BOB.uid
    assert shared.answer(shared.submit(ANN.uid, in_memory / "x")).job == "sums-1"
    assert not shared.orchestrator._reception.waits


@pytest.mark.parametrize("restarted", [False, True])
def test_a_request_that_was_cut_off_before_its_answer_is_not_taken_twice(shared, in_memory, monkeypatch, restarted):
    token = shared.submit(ANN.uid, in_memory / "x")

    def full(*arguments) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("altojax.cluster.service.queue.spool.reply", full)
        shared.orchestrator.turn()
    assert (shared.folder / SPOOL / token).exists()
    assert shared.said == ["users cannot be answered: OSError: [Errno 28] No space left on device"]
    if restarted:
        leave(shared.orchestrator)
        shared.serve()
    assert shared.answer(token).job == "sums-1"
    shared.orchestrator.turn()
    assert len(shared.orchestrator.store.requests()) == 1


def test_a_crowd_of_one_users_requests_holds_nobody_up(shared, in_memory, monkeypatch):
    monkeypatch.setattr(reception, "_WAITING", 60)
    many = [shared.send(BOB.uid, new_letter(shared.folder, "pause", "sums-9")) for _ in range(70)]
    assert shared.answer(shared.submit(ANN.uid, in_memory / "x")).job == "sums-21"
    for _ in range(5):
        shared.orchestrator.turn()
    errors = [spool.await_reply(shared.folder, token, 0.0).error for token in many]
    assert sum("requests of yours wait" in error for error in errors) == 10
    assert sum("no such task" in error for error in errors) == 60


def test_a_user_sees_of_others_that_they_are_there_and_where_and_no_more(in_memory):
    secret = in_memory / "secret-folder"
    script = {("sums-1", 1): Report("sums-1", 1, "failed", f"secret reason in {secret}")}
    shared = Shared(in_memory / "queue", holds=True, script=script)
    for number in (1, 2):
        assert shared.answer(shared.submit(ANN.uid, secret / str(number))).job
    assert shared.answer(shared.submit(ANN.uid, secret / "3", "secret-tenant")).error
    for _ in range(3):
        shared.orchestrator.turn()
    whole, masked = shared.look(CID), shared.look(BOB.uid)
    assert whole.mine == {"sums-1", "sums-2"} and not masked.mine
    failed = whole.snapshot.job("sums-1")
    assert failed is not None and "secret reason" in failed.reason and failed.output_dir == str(secret / "1")
    assert [span.reason for span in whole.snapshot.spans] == [f"secret reason in {secret}", ""]
    assert "secret" not in json.dumps(asdict(masked.snapshot))
    runs = masked.snapshot.job("sums-2")
    assert runs is not None and (runs.status, runs.gpus) == ("running", whole.snapshot.job("sums-2").gpus)
    assert "sums-3" in shared.look(ANN.uid).mine, "one's own refusal is told"
    leave(shared.orchestrator)


def test_views_and_answers_do_not_pile_up(shared, monkeypatch):
    tokens = [shared.send(ANN.uid, new_letter(shared.folder, "look")) for _ in range(20)]
    shared.orchestrator.turn()
    assert len(list((shared.folder / ANSWERS).iterdir())) == reception._LOOKS
    assert not list((shared.folder / SPOOL).iterdir()) and len(tokens) == 20
    monkeypatch.setattr(spool, "_FORGOTTEN_S", -1.0)
    spool.forget_old(shared.folder)
    assert not list((shared.folder / ANSWERS).iterdir())


def test_a_request_waits_for_somebody_to_serve_and_an_idle_queue_takes_it_first(shared, in_memory):
    token = shared.submit(ANN.uid, in_memory / "x")
    assert not shared.orchestrator.idle
    shared.engine.holds = False
    finish(shared.orchestrator)
    assert spool.await_reply(shared.folder, token, 0.0).job == "sums-1"
    waits = UserClient(shared.folder).submit(submission(config_of(in_memory / "y")), None, patience_s=0.0)
    assert (waits.job, waits.taken) == ("", False)
    shared.serve()


def test_a_queue_that_is_not_shared_says_so(tmp_path, monkeypatch):
    put(tmp_path / "queue", tmp_path / "x", caller=ME)
    monkeypatch.setattr("altojax.cluster.service.queue.client.os.getuid", lambda: 2001)
    with pytest.raises(UserError, match=r"belongs to .* and is no shared queue, expected one whose operator"):
        connect(tmp_path / "queue")


class Host:
    """This process as one user after the other, for all that the kernel checks."""

    def __init__(self, monkeypatch) -> None:
        self._monkeypatch = monkeypatch

    @contextlib.contextmanager
    def acting_as(self, uid: int):
        before = os.geteuid()
        with self._monkeypatch.context() as patch:
            self._become(uid)
            patch.setattr(os, "getuid", lambda: uid)
            try:
                yield
            finally:
                self._become(before)

    @staticmethod
    def _become(uid: int) -> None:
        os.seteuid(0)
        os.setegid(uid)
        os.seteuid(uid)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as several users")
def test_users_of_one_host_are_told_apart_by_the_kernel_and_none_is_root(in_memory, monkeypatch, capsys):
    host, queue = Host(monkeypatch), in_memory / "queue"
    in_memory.chmod(0o777)
    with host.acting_as(OPERATOR):
        shared = Shared(queue, holds=True)
    monkeypatch.setenv("ALTOJAX_QUEUE", str(queue))

    def turn(seconds: float) -> None:
        with host.acting_as(OPERATOR):
            shared.orchestrator._reception._read_s = -float("inf")
            shared.orchestrator.turn()

    monkeypatch.setattr(time, "sleep", turn)
    with host.acting_as(ANN.uid):
        sent = connect(queue).submit(submission(config_of(in_memory / "secret")), None)
        assert (sent.job, sent.error) == ("sums-1", "")
        waiting = new_letter(queue, "pause", "sums-1")
        spool.send(queue, waiting)
    with host.acting_as(BOB.uid):
        for folder in (queue, queue / SPOOL, queue / ANSWERS):
            with pytest.raises(PermissionError):
                list(folder.iterdir())
        for file in (queue / "queue.db", queue / "serve.lock", queue / "jobs" / "sums-1"):
            with pytest.raises(PermissionError):
                os.open(file, os.O_RDONLY)
        with pytest.raises(PermissionError):
            (queue / SPOOL / waiting.token).unlink()
        assert main(("queue", "--json")) == 0
        shown = capsys.readouterr().out
        assert "sums-1" in shown and "secret" not in shown
        for words in (("cancel", "sums-1"), ("queue", "sums-1")):
            assert main(words) == 2
            assert "belongs to tenant 'speech', expected a task of yours" in capsys.readouterr().err
        assert "belongs to tenant 'speech'" in connect(queue).ask("sums-1", "cancel").error
    with host.acting_as(EVE):
        assert main(("queue",)) == 2
        assert "user 2005: belongs to no tenant of this queue" in capsys.readouterr().err
    with host.acting_as(ANN.uid):
        assert main(("queue", "sums-1")) == 0 and "secret" in capsys.readouterr().out
        assert main(("cancel", "sums-1")) == 0
        assert capsys.readouterr().out == "sums-1: asked to cancel\n"
    turn(0.0)
    with host.acting_as(OPERATOR):
        assert statuses(queue) == {"sums-1": "cancelled"}
        set_doors(queue, shared=False)
    with host.acting_as(ANN.uid):
        assert main(("queue",)) == 2 and "is no shared queue" in capsys.readouterr().err
    with host.acting_as(OPERATOR):
        leave(shared.orchestrator)
