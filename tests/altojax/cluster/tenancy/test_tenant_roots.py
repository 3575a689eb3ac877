"""A tenant's tasks read and write beneath its roots: when they are taken, and as each attempt begins."""

import json
import os
import pwd
import tempfile
from pathlib import Path

import pytest
from pydantic import ValidationError
from queues import (
    ANN,
    Caller,
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

from altojax.cluster.engines.engine import Order
from altojax.cluster.engines.worker import check_task
from altojax.cluster.service.access import Access
from altojax.cluster.service.job_folder import prepare
from altojax.cluster.tenancy.grants import Grants, Roots
from altojax.cluster.tenancy.members import Members, TenantSection
from altojax.config.metric_spec import MetricSpec
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal

MEMBERS = Members(0, {"speech": frozenset({2001})})
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user, which only root can")


@pytest.fixture
def home(tmp_path):
    """Folders of Ann's tenant beside the operator's private one."""
    for name in ("ann/data/rows", "ann/runs", "private"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ann" / "data" / "rows" / "a.jsonl").write_text("{}\n")
    (tmp_path / "private" / "a.jsonl").write_text("{}\n")
    return tmp_path


@pytest.fixture
def access(home):
    roots = Roots(read=[str(home / "ann" / "data")], write=[str(home / "ann" / "runs")])
    return Access({"speech": Grants(roots=roots)})


def become(home, access, output_dir="ann/runs/one", **paths) -> str:
    """Submits a task and returns why it was refused, or what became of it."""
    named = {key: str(home / path) for key, path in paths.items()}
    put(home / "queue", home / output_dir, caller=ANN, tenant="speech", **named)
    finish(orchestrate(home / "queue", ScriptedEngine({"a": 1}), members=MEMBERS, access=access))
    job = snapshot(home / "queue").jobs[-1]
    return job.reason or job.status


def attempt(home, access, config) -> Order:
    """The folder of an attempt as its worker finds it."""
    order = Order("sums-1", 1, home / "queue" / "jobs" / "sums-1", {"a": (0,)})
    (home / "queue").mkdir(exist_ok=True)
    prepare(order, config, access.roots("speech"))
    return order


def test_what_lies_beneath_the_roots_is_read_and_written(home, access):
    (home / "ann" / "data" / "link").symlink_to("rows")
    for number, train in enumerate(("rows", "rows/a.jsonl", "link/a.jsonl")):
        assert become(home, access, f"ann/runs/{number}/new", train=f"ann/data/{train}") == "ended"
    (home / "ann" / "runs" / "rows.jsonl").touch()
    assert become(home, access, "ann/runs/last", train="ann/runs/rows.jsonl") == "ended", "what it writes it may read"


@pytest.mark.parametrize("key", ["train", "model"])
@pytest.mark.parametrize(
    "path", ["private/a.jsonl", "private/b", "private", "ann", "ann/data/out", "ann/data/folder", "ann/data/up"]
)
def test_nothing_else_is_read(home, access, key, path):
    (home / "ann" / "data" / "out").symlink_to(home / "private" / "a.jsonl")
    (home / "ann" / "data" / "up").symlink_to("../../private")
    (home / "ann" / "data" / "folder").mkdir()
    (home / "ann" / "data" / "folder" / "theirs.jsonl").symlink_to(home / "private" / "a.jsonl")
    name = {"train": "tasks.0.data.train", "model": "model"}[key]
    assert become(home, access, **{key: path}).startswith(f"{name}: ")


@pytest.mark.parametrize("path", ["private/run", "ann/run", "ann/data/run", "ann/runs/link", "ann/runs/link/new"])
def test_nothing_else_is_written(home, access, path):
    (home / "ann" / "runs" / "link").symlink_to(home / "private")
    assert become(home, access, path).startswith("output_dir: ")
    assert [entry.name for entry in (home / "private").iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("name", ["journal.lock", "journal.db", "sums", "sums/best", "checkpoints"])
def test_a_link_in_the_runs_own_folder_is_refused(home, access, name):
    place = home / "ann" / "runs" / "one" / name
    place.parent.mkdir(parents=True)
    place.symlink_to(home / "private" / "a.jsonl")
    if name == "journal.lock":  # which is taken by whoever writes the run
        with pytest.raises(UserError, match=r"journal\.lock: is a link"):
            Journal.open(place.parent, config_text="", identity="x")
    else:
        assert f"{name}: is a link" in become(home, access)
    assert (home / "private" / "a.jsonl").read_text() == "{}\n"


def test_what_is_exchanged_after_intake_is_found_as_the_attempt_begins(home, access):
    rows, run = home / "ann" / "data" / "rows" / "a.jsonl", home / "ann" / "runs" / "one"
    config = config_of(run, train=str(rows))
    order = attempt(home, access, config)
    check_task(order.folder, config)
    rows.unlink()
    rows.symlink_to(home / "private" / "a.jsonl")
    with pytest.raises(UserError, match=r"^tasks\.0\.data\.train: .*a\.jsonl: leads outside"):
        check_task(order.folder, config)
    rows.unlink()
    rows.touch()
    run.symlink_to(home / "private")
    with pytest.raises(UserError, match=r"^output_dir: .*one: goes through a link"):
        check_task(order.folder, config)


def test_a_shared_run_lies_in_the_queue_and_is_written_there(home, access):
    config = config_of(home / "queue" / "jobs" / "sums-1" / "run", train=str(home / "ann" / "data" / "rows"))
    check_task(attempt(home, access, config).folder, config)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"read": ["data"], "write": ["/a"]}, "expected an absolute path"),
        ({"read": [], "write": ["/a/../b"]}, r"without '\.\.'"),
        ({"read": ["/a"]}, "write"),
        ({"write": []}, "at least 1 item"),
    ],
)
def test_roots_are_absolute_folders_of_which_one_can_be_written(given, said):
    with pytest.raises(ValidationError, match=said):
        TenantSection.model_validate({"roots": given})


@pytest.mark.parametrize("granted", [False, True])
def test_code_that_comes_with_a_model_runs_where_the_operator_says_so(home, granted):
    config = config_of(home / "ann" / "runs" / "one")
    assert config.model is not None
    config = config.model_copy(update={"model": config.model.model_copy(update={"trust_remote_code": True})})
    access = Access({"speech": Grants(trust_remote_code=granted)})
    submit(home / "queue", submission(config), ANN, "speech")
    finish(orchestrate(home / "queue", ScriptedEngine({"a": 1}), members=MEMBERS, access=access))
    [job] = snapshot(home / "queue").jobs
    if granted:
        assert job.status == "ended"
    else:
        assert job.reason == (
            "model.trust_remote_code: given true, expected false, or trust_remote_code: true of tenant 'speech' in the "
            "file of who serves"
        )


@pytest.mark.parametrize("spec", [{"command": ["touch", "/tmp/x"]}, {"python": "os:system"}], ids=str)
@pytest.mark.parametrize("granted", [False, True])
def test_code_that_scores_answers_runs_where_the_operator_says_so(home, granted, spec):
    config = config_of(home / "ann" / "runs" / "one")
    update = {"select_by": "score", "metric": MetricSpec.model_validate(spec)}
    config = config.model_copy(update=update)
    access = Access({"speech": Grants(metric_code=granted)})
    submit(home / "queue", submission(config), ANN, "speech")
    finish(orchestrate(home / "queue", ScriptedEngine({"a": 1}), members=MEMBERS, access=access))
    [job] = snapshot(home / "queue").jobs
    if granted:
        assert job.status == "ended"
    else:
        key = next(iter(spec))
        assert job.reason == (
            f"metric.{key}: given code of your own, expected none, or metric_code: true of tenant 'speech' in the file "
            "of who serves"
        )


def test_who_serves_is_told_of_tenants_that_nothing_confines():
    grants = {"speech": Grants(), "vision": Grants(roots=Roots(write=["/runs"]))}
    first, second = Access(grants).warnings("ray")
    assert first == "tasks run on ray as who started the cluster, whoever submitted them" and second.startswith(
        "tenant speech: has no roots"
    )
    assert Access().warnings("ray") == []
    assert Access(grants, as_submitter=True).warnings("local") == []


@pytest.mark.parametrize("closed", ["above", "package", "python"])
def test_who_serves_is_told_that_users_cannot_run_the_interpreter(closed):
    with tempfile.TemporaryDirectory() as made:
        above = Path(made) / "above"
        package, program = above / "package", above / "python"
        package.mkdir(parents=True)
        program.touch()
        for one in (Path(made), above, package, program):
            one.chmod(0o755)
        access = Access({"a": Grants()}, as_submitter=True)
        assert access.warnings("local", [program, package]) == []
        kept_out = Path(made) / "above" / ("" if closed == "above" else closed)
        kept_out.chmod(0o750)
        [line] = access.warnings("local", [program, package])
        assert line.startswith(f"{kept_out}: is closed to other users, as whom tasks cannot start; expected an interp")


def test_a_run_that_was_exchanged_is_not_looked_at(home, access):
    put(home / "queue", home / "ann" / "runs" / "one", caller=ANN, tenant="speech")
    engine, said = ScriptedEngine({"a": 1}, holds=True), []
    orchestrator = orchestrate(home / "queue", engine, members=MEMBERS, access=access, say=said.append)
    orchestrator.turn()
    (home / "ann" / "runs" / "one").symlink_to(home / "private")
    ask(home / "queue", "sums-1", "pause", ANN)
    for _ in range(3):
        orchestrator.turn()
    assert statuses(home / "queue") == {"sums-1": "paused"}
    place = home / "ann" / "runs" / "one"
    assert [line for line in said if f"output_dir: {place}: goes through a link" in line]
    leave(orchestrator)


def test_nothing_is_delivered_to_where_a_run_was_exchanged(home, access, monkeypatch):
    monkeypatch.setattr("altojax.cluster.service.orchestrator.deliver", lambda *_: pytest.fail("it was delivered"))
    put(home / "queue", home / "ann" / "runs" / "one", caller=ANN, tenant="speech")
    orchestrator = orchestrate(home / "queue", ScriptedEngine({"a": 1}, holds=True), members=MEMBERS, access=access)
    orchestrator.turn()
    (home / "ann" / "runs" / "one").symlink_to(home / "private")
    task = orchestrator.scheduler.tasks["sums-1"]
    monkeypatch.setattr(task, "members", ("sums-1",))
    monkeypatch.setattr(task, "status", "merged")
    with pytest.raises(UserError, match=r"^output_dir: .*one: goes through a link"):
        orchestrator._deliver(task)
    leave(orchestrator)


@as_root
def test_where_root_serves_files_of_a_task_are_touched_as_its_submitter():
    nobody = pwd.getpwnam("nobody").pw_uid
    with tempfile.TemporaryDirectory() as made:
        home, private = Path(made), Path(made, "private")
        home.chmod(0o711)
        private.mkdir(mode=0o700)
        (private / "a.jsonl").write_text("{}\n")
        (home / "nobody").mkdir()
        os.chown(home / "nobody", nobody, -1)
        members = Members(0, {"speech": frozenset({nobody})})
        caller = Caller(nobody, "nobody")
        (home / "runs").mkdir()
        os.chown(home / "runs", nobody, -1)
        for run, train in (("nobody/1", private / "a.jsonl"), ("private/2", "hub/rows"), ("nobody/3", "hub/rows")):
            put(home / "queue", home / run, caller=caller, tenant="speech", train=str(train))
        engine = ScriptedEngine({"a": 1}, holds=True, switches_user=True)
        orchestrator = orchestrate(home / "queue", engine, members=members, access=Access.on(engine, {}))
        orchestrator.turn()
        assert statuses(home / "queue") == {"sums-1": "refused", "sums-2": "refused", "sums-3": "running"}
        reasons = {job.name: job.reason for job in snapshot(home / "queue").jobs}
        assert reasons["sums-1"].startswith("tasks.0.data.train: ") and "cannot be entered" in reasons["sums-1"]
        [order] = engine.running.values()
        assert order.uid == order.folder.stat().st_uid == nobody
        assert (order.folder / "task.yaml").stat().st_uid == 0
        leave(orchestrator)


@as_root
def test_a_task_that_the_queue_did_not_write_is_not_run(home, access):
    config = config_of(home / "ann" / "runs" / "one")
    order = attempt(home, access, config)
    os.chown(order.folder / "task.yaml", 65534, 65534)
    with pytest.raises(UserError, match=r"task\.yaml: was written by user 65534, expected it as the queue wrote it"):
        check_task(order.folder, config)


def test_roots_reach_the_worker_as_they_were_granted(home, access):
    order = attempt(home, access, config_of(home / "ann" / "runs" / "one"))
    told = json.loads((order.folder / "roots.json").read_text())
    assert told["read"] == [str(home / "ann" / "data")]
    assert told["write"] == [str(home / "ann" / "runs"), str(order.folder)]


def test_a_folder_that_is_named_again_and_again_does_not_hold_up_who_serves(home, access, monkeypatch):
    monkeypatch.setattr("altojax.cluster.tenancy.roots.MOST_FILES", 5)
    config = config_of(home / "ann/runs/one")

    def of(count: int) -> str:
        data = config.tasks[0].data.model_copy(update={"train": [str(home / "ann/data/rows")] * count})
        task = config.tasks[0].model_copy(update={"data": data})
        submit(home / "queue", submission(config.model_copy(update={"tasks": [task]})), ANN, "speech")
        finish(orchestrate(home / "queue", ScriptedEngine({"a": 1}), members=MEMBERS, access=access))
        (*_, job) = snapshot(home / "queue").jobs
        return job.reason or job.status

    assert of(2) == "ended"  # a folder and its file, twice
    assert "with what the task reads beside it more than 5 files" in of(3)
    monkeypatch.setattr("altojax.cluster.service.request_handler.MOST_READS", 2)
    assert "reads 3 files and folders, expected at most 2" in of(3)
