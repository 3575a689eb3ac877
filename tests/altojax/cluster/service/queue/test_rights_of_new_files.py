"""In a shared queue what a task writes is for who submitted it, or for the group of its folder."""

import os
import stat

import pytest
from queues import ANN, ME, ScriptedEngine, config_of, finish, orchestrate, put, snapshot, statuses, submission, submit

from altojax.cluster.service import request_handler
from altojax.cluster.service.access import Access
from altojax.cluster.service.engine_config import LocalSection
from altojax.cluster.service.verbs.serve import ServeConfig, serve
from altojax.cluster.tenancy.grants import Grants
from altojax.cluster.tenancy.members import Members, TenantSection
from jaxrun.process.errors import UserError

GROUP = 3001
TENANTS = {"speech": Grants()}
WORKER = (
    'umask >"$1/umask"; end="$1/attempt-$2.json"; '
    'echo "{\\"code\\": 0, \\"outcome\\": \\"ended\\"}" >"$end.new"; mv "$end.new" "$end"'
)


@pytest.fixture
def by_group(monkeypatch):
    """What applies where somebody serves a shared queue who is not root; Ann is in a group."""
    monkeypatch.setattr("altojax.cluster.service.access.os.geteuid", lambda: 4000)
    monkeypatch.setattr("altojax.cluster.service.access.os.getegid", lambda: 4000)
    monkeypatch.setattr(
        "altojax.cluster.service.access.groups_of", lambda uid: {ANN.uid: {GROUP}}.get(uid, frozenset())
    )
    return Access.on(ScriptedEngine({"a": 1}, switches_user=True), TENANTS)


def test_only_a_shared_queue_takes_rights_of_new_files(by_group):
    assert Access.on(ScriptedEngine({"a": 1}, switches_user=True), {}).umask is None
    assert (by_group.as_submitter, by_group.umask) == (False, 0o027)


def test_as_its_submitter_a_tasks_files_are_for_the_submitter_alone(monkeypatch):
    monkeypatch.setattr("altojax.cluster.service.access.os.geteuid", lambda: 0)
    access = Access.on(ScriptedEngine({"a": 1}, switches_user=True), TENANTS)
    assert (access.as_submitter, access.umask) == (True, 0o077)


def test_a_folder_whose_new_files_the_submitter_could_not_read_is_refused(by_group, tmp_path, monkeypatch):
    new = str(tmp_path / "run" / "new")
    with pytest.raises(UserError, match=rf"^output_dir: what 4000 writes in {tmp_path} would not be readable by 2001"):
        by_group.check_readable(new, ANN.uid)
    by_group.check_readable(new, 4000)
    monkeypatch.setattr("altojax.cluster.service.access.os.getegid", lambda: GROUP)
    by_group.check_readable(new, ANN.uid)
    tmp_path.chmod(0o2770)
    if tmp_path.stat().st_mode & stat.S_ISGID:
        with pytest.raises(UserError, match="would not be readable by 2001"):
            by_group.check_readable(new, ANN.uid)
        monkeypatch.setattr("altojax.cluster.service.access.groups_of", lambda uid: {tmp_path.stat().st_gid})
        by_group.check_readable(new, ANN.uid)


def test_it_is_refused_when_the_task_is_taken(by_group, tmp_path):
    put(tmp_path / "queue", tmp_path / "x", caller=ANN)
    finish(orchestrate(tmp_path / "queue", ScriptedEngine({"a": 1}), access=by_group))
    [job] = snapshot(tmp_path / "queue").jobs
    assert job.status == "refused" and job.reason.endswith("of a group of both that new files take over (chmod g+s)")


@pytest.mark.parametrize("tenants", [{}, {"speech": TenantSection()}], ids=["own", "shared"])
def test_workers_have_the_mask_of_the_queue_and_serve_gives_it_back(tmp_path, tenants):
    put(tmp_path / "queue", tmp_path / "x", caller=ME)
    engine = LocalSection(gpus=1, worker=["sh", "-c", WORKER, "worker"])
    before = os.umask(0o022)
    try:
        serve(ServeConfig(queue=str(tmp_path / "queue"), engine=engine, tenants=tenants, page=None, until_idle=True))
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert statuses(tmp_path / "queue") == {"sums-1": "ended"}
    mask = int((tmp_path / "queue" / "jobs" / "sums-1" / "umask").read_text(), 8)
    assert mask == (0o022 if not tenants else 0o077 if os.geteuid() == 0 else 0o027)


def test_a_user_has_a_bounded_number_of_tasks_that_are_not_over(tmp_path, monkeypatch):
    monkeypatch.setattr(request_handler, "MOST_LIVE", 2)
    members = Members(os.getuid(), {"speech": frozenset({ANN.uid})})
    for caller in (ANN, ME):
        for number in range(3):
            task = submission(config_of(tmp_path / f"{caller.user}-{number}"))
            submit(tmp_path / "queue", task, caller, "speech")
    engine = ScriptedEngine({"a": 8}, holds=True)
    orchestrator = orchestrate(tmp_path / "queue", engine, members=members)
    orchestrator.turn()
    refused = [job for job in snapshot(tmp_path / "queue").jobs if job.status == "refused"]
    assert [job.reason for job in refused] == ["2 tasks of yours wait or run, expected some of them to end first"]
    engine.holds = False
    finish(orchestrator)
