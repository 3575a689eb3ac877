"""A worker that runs as who submitted its task has that user's rights, and cannot turn the engine on others."""

import json
import os
import pwd
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from orders import reports_of
from test_slurm_engine import cluster, make_engine, order  # noqa: F401  (fixtures)

from altojax.cluster.engines import attempts
from altojax.cluster.engines.attempts import log_of
from altojax.cluster.engines.engine import Order, Report
from altojax.cluster.engines.local import LocalEngine
from altojax.cluster.engines.process import Identity
from altojax.cluster.service.job_folder import prepare
from altojax.config.tune_config import TuneConfig
from jaxrun.untrusted.accounts import Account

NOBODY = Account.of(pwd.getpwnam("nobody").pw_uid)
SAYS = 'env; id -u; umask; cat task.yaml; echo "{\\"code\\": 0, \\"outcome\\": \\"ended\\"}" >"$1/attempt-$2.json"'
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="runs workers as another user, which only root can")


@pytest.fixture
def queue():
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o711)
        yield Path(made)


def make_order_of(queue: Path, engine: LocalEngine, name: str = "sums-1", uid: int | None = None) -> Order:
    [node] = engine.nodes()
    made = Order(name, 1, queue / "jobs" / name, {node: (0,)}, uid)
    config = {
        "output_dir": "/x",
        "model": {"model_name_or_path": "m"},
        "tasks": [{"name": "a", "data": {"train": "t"}}],
    }
    prepare(made, TuneConfig.model_validate(config), None)
    return made


def engine_of(script: str) -> LocalEngine:
    return LocalEngine(gpus=1, command=["/bin/sh", "-c", f'cd "$1"; {script}', "worker"], grace_s=0.3)


@as_root
def test_a_worker_runs_as_its_submitter_and_learns_no_secret_of_who_serves(queue, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "of-who-serves")
    monkeypatch.setenv("DATABASE_URL", "of-who-serves")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/of-who-serves")
    before = os.umask(0o077)
    try:
        engine = engine_of(SAYS)
        one = make_order_of(queue, engine, uid=NOBODY.uid)
        engine.start(one)
        assert reports_of(engine) == [Report("sums-1", 1, "ended")]
    finally:
        os.umask(before)
    said = log_of(one.folder, 1).read_text().splitlines()
    assert {str(NOBODY.uid), "0077", f"HOME={NOBODY.home}", "USER=nobody", "output_dir: /x"} <= set(said)
    assert not any("of-who-serves" in line for line in said)
    assert log_of(one.folder, 1).stat().st_uid == (one.folder / "attempt-1.json").stat().st_uid == NOBODY.uid
    assert one.folder.stat().st_mode & 0o777 == 0o700, "closed to others"


@as_root
def test_a_mark_that_the_submitter_wrote_names_no_process(queue):
    bystander = Identity.of(os.getpid())
    engine = engine_of(SAYS)
    one = make_order_of(queue, engine, uid=NOBODY.uid)
    mark = one.folder / "attempt-1.pid.json"
    mark.write_text(bystander.model_dump_json())
    os.chown(mark, NOBODY.uid, NOBODY.gid)
    engine.start(one)
    assert Identity.model_validate_json(mark.read_text()) != bystander
    assert reports_of(engine) == [Report("sums-1", 1, "ended")]


@pytest.mark.parametrize(
    "plant",
    [
        lambda log: log.symlink_to(log.parent.parent / "theirs"),
        lambda log: log.hardlink_to(log.parent.parent / "theirs"),
        os.mkfifo,
    ],
)
def test_output_goes_into_no_file_that_was_put_in_the_logs_place(queue, plant):
    engine = engine_of(SAYS)
    one = make_order_of(queue, engine)
    (queue / "jobs" / "theirs").write_text("theirs")
    plant(log_of(one.folder, 1))
    engine.start(one)
    [report] = reports_of(engine)
    assert report.reason.startswith(f"cannot be started: {log_of(one.folder, 1)}: is ")
    assert (queue / "jobs" / "theirs").read_text() == "theirs"


@pytest.mark.parametrize("plant", [lambda end: end.symlink_to("/etc/passwd"), lambda end: end.write_text("{" * 70_000)])
def test_what_a_worker_says_is_read_within_bounds_and_through_no_link(queue, plant):
    engine = engine_of("exit 0")
    one = make_order_of(queue, engine)
    plant(one.folder / "attempt-1.json")
    engine.start(one)
    [report] = reports_of(engine)
    assert report.outcome == "failed" and "attempt-1.json: " in report.reason and "root:" not in report.reason


def test_a_reason_is_one_line_of_bounded_length_whatever_a_worker_says(queue):
    engine = engine_of("exit 0")
    one = make_order_of(queue, engine)
    end = {"code": 1, "outcome": "failed", "reason": "\x1b[2Jno\nluck" + "x" * 9000}
    (one.folder / "attempt-1.json").write_text(json.dumps(end))
    engine.start(one)
    [report] = reports_of(engine)
    assert report.reason.startswith("[2Jno luckxxx") and report.reason.isprintable() and len(report.reason) <= 400


@as_root
def test_a_mark_is_known_by_the_file_that_is_read_and_not_by_one_seen_before(queue, monkeypatch):
    engine = engine_of(SAYS)
    one = make_order_of(queue, engine, uid=NOBODY.uid)
    mark = one.folder / "attempt-1.pid.json"
    mark.write_text(Identity.of(os.getpid()).model_dump_json())
    theirs = mark.with_name("theirs")
    theirs.write_bytes(mark.read_bytes())
    os.chown(theirs, NOBODY.uid, NOBODY.gid)
    opened = attempts.open_plain

    def swapped(path):
        theirs.replace(mark)
        return opened(path)

    monkeypatch.setattr(attempts, "open_plain", swapped)
    assert attempts.read_mark(mark, Identity) is None


def test_slurm_runs_a_job_as_its_submitter_and_is_asked_for_that_users_jobs(cluster, order, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        "altojax.cluster.engines.visible_gpus._FOR_OTHERS", ("PATH", "FAKE")
    )  # which Slurm's programs here need
    engine = make_engine()
    engine.start(replace(order, uid=NOBODY.uid))
    assert f"--uid={NOBODY.uid} --gid={NOBODY.gid} --job-name=a-1.1." in cluster.called("sbatch")[0]
    assert f"HOME={NOBODY.home}\n" in (cluster.folder / "environment").read_text()
    engine.poll()
    assert cluster.called("squeue") == [f"--user={NOBODY.uid} --noheader --states=all --format=%A|%T|%j"]


def test_a_submitter_without_an_account_is_told_so(queue):
    engine = engine_of(SAYS)
    one = make_order_of(queue, engine)
    engine.start(replace(one, uid=4000000))
    [report] = reports_of(engine)
    assert report.reason == "cannot be started: user 4000000: has no account on this host, expected one to run as"
