"""Workers of this host: whatever happens to them or to the orchestrator, each attempt is reported once, as it was."""

import os
import signal
import socket
import subprocess
import sysconfig
import time
from dataclasses import replace
from pathlib import Path

import pytest
from orders import ROOT, dummy_command, dummy_order, make_order, reports_of, wait_for

from altojax.cluster.engines import visible_gpus, worker
from altojax.cluster.engines.attempts import End, raise_fence, read_end
from altojax.cluster.engines.engine import Report
from altojax.cluster.engines.local import WORKER, LocalEngine
from altojax.cluster.engines.process import Identity
from altojax.cluster.engines.visible_gpus import gpu_environment, host_device, host_gpus, worker_environment
from altojax.run.loop.train_loop import TrainLoop
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal

HERE = socket.gethostname()
ONE, TWO = {HERE: (0,)}, {HERE: (0, 1)}
FOREVER = "while True: time.sleep(0.01)"


@pytest.fixture
def engine():
    """An engine of four simulated devices whose workers do what a file of the task says."""
    made = LocalEngine(gpus=4, command=dummy_command(), grace_s=0.3)
    yield made
    for one in made._running.values():
        one.identity.kill()
    wait_for(lambda: made.poll() == [] and not made._running)


def began(order):
    wait_for((order.folder / "began").exists)
    return (order.folder / "began").read_text()


def process(order):
    return Identity.model_validate_json((order.folder / f"attempt-{order.attempt}.pid.json").read_text())


@pytest.mark.slow
def test_told_to_stop_a_task_saves_and_a_worker_with_other_gpus_goes_on_to_its_end(tmp_path, monkeypatch, capfd):
    order = make_order(tmp_path / "sums-1", ONE, mesh="{adapter: 1}")
    advance, before = TrainLoop.advance, signal.getsignal(signal.SIGTERM)

    def signalled(self):
        advance(self)
        if self.tick == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(TrainLoop, "advance", signalled)
        assert worker.main([str(order.folder), "1"]) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_end(order.folder, 1) == End(code=130, outcome="halted")

    task = order.folder / "task.yaml"
    task.write_text(task.read_text().replace("mesh: {adapter: 1}", "mesh: null"))
    engine = LocalEngine(gpus=2)
    engine.start(replace(order, attempt=2, gpus=TWO))
    try:
        assert reports_of(engine) == [Report("sums-1", 2, "ended")]
    finally:
        process(replace(order, attempt=2)).kill()
    assert "resuming from tick 7" in (order.folder / "attempt-2.log").read_text()
    assert read_end(order.folder, 2) == End(code=0, outcome="ended")
    assert worker.main([str(order.folder), "2"]) == worker.REPLACED
    assert "attempt 2 has ended before" in capfd.readouterr().err
    with Journal.read(order.folder / "run") as journal:
        starts = [(event.tick, event.payload["device"]) for event in journal.events("run_start")]
        assert starts == [(0, "1 × cpu"), (7, "2 × cpu")], "devices of its mesh, then all that it was given"
        assert [event.payload["step"] for event in journal.events("end")] == [20, 20]


def test_an_attempt_that_ends_is_reported_once_and_when_its_process_is_gone(tmp_path, engine):
    order = dummy_order(tmp_path / "a-1", TWO, 'say("ended", 0)')
    engine.start(order)
    assert reports_of(engine) == [Report("a-1", 1, "ended")]
    assert process(order).lives is False
    assert (order.folder / "attempt-1.log").read_text() == "begun\n"


def test_starting_twice_does_nothing_whoever_does_it(tmp_path, engine):
    order = dummy_order(tmp_path / "a-1", ONE, FOREVER)
    engine.start(order)
    began(order)
    first = process(order)
    engine.start(order)
    later = LocalEngine(gpus=4, command=dummy_command())
    later.start(order)
    assert process(order) == first
    assert (engine.poll(), later.poll()) == ([], [])
    later.stop("a-1", 1)
    assert reports_of(later) == [Report("a-1", 1, "halted")]


def test_a_task_that_fails_is_at_fault_and_says_why(tmp_path, engine):
    engine.start(dummy_order(tmp_path / "a-1", ONE, 'raise RuntimeError("no such luck")'))
    assert reports_of(engine) == [Report("a-1", 1, "failed", "RuntimeError: no such luck", "task")]


@pytest.mark.parametrize(("number", "blame"), [(signal.SIGKILL, "node"), (signal.SIGSEGV, "task")])
def test_who_is_to_blame_for_a_killed_process(tmp_path, engine, number, blame):
    engine.start(dummy_order(tmp_path / "a-1", ONE, f"os.kill(os.getpid(), {number})"))
    [report] = reports_of(engine)
    assert (report.outcome, report.blame) == ("failed", blame)
    assert report.reason == f"killed by {number.name}: begun"


def test_one_that_does_not_stop_is_ended_by_force_with_all_that_it_started(tmp_path, engine):
    does = [
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "child = os.fork()",
        'write(folder / f"is-{child > 0}", str(os.getpid()))',
        FOREVER,
    ]
    order = dummy_order(tmp_path / "a-1", ONE, "\n".join(does))
    engine.start(order)
    wait_for((order.folder / "is-False").exists)
    wait_for((order.folder / "is-True").exists)
    child = Identity.of(int((order.folder / "is-False").read_text()))
    engine.stop("a-1", 1)
    [report] = reports_of(engine)
    assert report.outcome == "halted" and "killed" in report.reason
    wait_for(lambda: not child.lives)


def test_one_that_has_ended_and_hangs_does_not_keep_its_gpus(tmp_path, engine):
    does = 'write(folder / "attempt-1.json", \'{"code": 0, "outcome": "ended"}\')'
    engine.start(dummy_order(tmp_path / "a-1", ONE, f"{does}\n{FOREVER}"))
    assert reports_of(engine) == [Report("a-1", 1, "ended")]


def test_a_stop_that_nobody_asked_for_is_the_nodes_doing(tmp_path, engine):
    order = dummy_order(tmp_path / "a-1", ONE, FOREVER)
    engine.start(order)
    began(order)
    process(order).tell(signal.SIGTERM)
    [report] = reports_of(engine)
    assert (report.outcome, report.blame) == ("failed", "node") and report.reason.startswith("preempted")


def test_a_later_engine_takes_over_what_runs_and_learns_what_ended_meanwhile(tmp_path):
    first = LocalEngine(gpus=4, command=dummy_command())
    runs = dummy_order(tmp_path / "runs-1", ONE, FOREVER)
    ends = dummy_order(tmp_path / "ends-2", ONE, 'say("ended", 0)')
    dies = dummy_order(tmp_path / "dies-3", ONE, FOREVER)
    never = dummy_order(tmp_path / "never-4", ONE, 'say("ended", 0)')
    for order in (runs, ends, dies):
        first.start(order)
        began(order)
    first.close()
    process(dies).kill()
    wait_for(lambda: not process(ends).lives and not process(dies).lives)
    later = LocalEngine(gpus=4, command=dummy_command())
    later.adopt([runs, ends, dies, never])
    found = {report.job: report for report in reports_of(later, 3)}
    assert found["never-4"] == Report("never-4", 1, "ended")
    assert found["ends-2"] == Report("ends-2", 1, "ended")
    assert (found["dies-3"].outcome, found["dies-3"].blame) == ("failed", "node")
    later.stop("runs-1", 1)
    assert reports_of(later) == [Report("runs-1", 1, "halted")]


def test_the_number_of_a_dead_process_is_not_taken_for_it(tmp_path, engine):
    order = dummy_order(tmp_path / "a-1", ONE, FOREVER)
    mine = Identity.of(os.getpid())
    stranger = mine.model_copy(update={"began": mine.began - 1})
    (order.folder / "attempt-1.pid.json").write_text(stranger.model_dump_json())
    engine.adopt([order])
    engine.stop("a-1", 1)  # would end this very test if the number were believed
    [report] = reports_of(engine)
    assert report.outcome == "halted" and "its process is gone" in report.reason


def test_a_process_whose_maker_died_before_writing_it_down_never_begins(tmp_path, engine, monkeypatch):
    order = dummy_order(tmp_path / "a-1", ONE, FOREVER)

    def full(path, text):
        raise UserError(f"{path}: no space left on the device, expected room to write")

    monkeypatch.setattr("altojax.cluster.engines.local.write_atomic", full)
    engine.start(order)
    [report] = engine.poll()
    assert (report.outcome, report.blame) == ("failed", "node") and "no space left" in report.reason
    time.sleep(0.1)
    assert not (order.folder / "began").exists()


def test_an_older_attempt_cannot_be_started_after_a_newer_one(tmp_path, engine):
    order = dummy_order(tmp_path / "a-1", ONE, FOREVER)
    assert raise_fence(order.folder, 2)
    engine.start(order)
    [report] = engine.poll()
    assert report.outcome == "failed" and "a newer attempt" in report.reason
    assert not raise_fence(order.folder, 1)
    assert read_end(order.folder, 1) is None


@pytest.mark.parametrize("gpus", [{}, {HERE: (4,)}, {HERE: (0,), "elsewhere": (0,)}])
def test_gpus_that_are_not_there_start_nothing(tmp_path, engine, gpus):
    order = dummy_order(tmp_path / "a-1", gpus, FOREVER)
    engine.start(order)
    [report] = engine.poll()
    assert report.outcome == "failed" and "expected some of 0 to 3" in report.reason
    assert not (order.folder / "began").exists()


def test_gpus_are_counted_without_touching_them(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\ncase $1 in *index) printf '0\\n1\\n' ;; *name) printf 'Fast Card\\nFast Card\\n' ;; esac\n"
    )
    tool.chmod(0o755)
    around = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert host_gpus(around) == ("0", "1")
    assert host_gpus(around | {"CUDA_VISIBLE_DEVICES": "GPU-8a, 3"}) == ("GPU-8a", "3")
    assert host_gpus(around | {"CUDA_VISIBLE_DEVICES": ""}) == ()
    assert host_gpus({"PATH": "/nowhere"}) == ()
    kinds = [host_device(one) for one in (around, around | {"CUDA_VISIBLE_DEVICES": ""}, {"PATH": "/nowhere"})]
    assert kinds == ["Fast Card", "cpu", "cpu"]
    tool.write_text("#!/bin/sh\necho no driver >&2; exit 9\n")
    with pytest.raises(UserError, match=r"exit code 9 \(no driver"):
        host_gpus(around)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with pytest.raises(UserError, match="given 3, but this host has 2"):
        LocalEngine(gpus=3)
    assert LocalEngine().nodes() == {HERE: 2}
    assert gpu_environment(["5", "7"])["CUDA_VISIBLE_DEVICES"] == "5,7"


def test_what_an_attempt_started_ends_with_it_whoever_looks(tmp_path, engine):
    child = "import subprocess; print(subprocess.Popen(['sleep', '600'], process_group=0).pid, flush=True)\n"
    orders = [
        dummy_order(tmp_path / name, ONE, child + does) for name, does in (("a-1", "say('ended', 0)"), ("b-1", FOREVER))
    ]
    for order in orders:
        engine.start(order)
    assert reports_of(engine) == [Report("a-1", 1, "ended")]
    wait_for(lambda: len((orders[1].folder / "attempt-1.log").read_text().split()) == 2)
    left = [int((order.folder / "attempt-1.log").read_text().split()[1]) for order in orders]
    later = LocalEngine(gpus=4, command=dummy_command())
    later.adopt([orders[1]])
    os.kill(process(orders[1]).pid, signal.SIGKILL)  # the worker alone, not its group
    assert [report.outcome for report in reports_of(later)] == ["failed"]
    for pid in left:
        wait_for(lambda pid=pid: (found := Identity.of(pid)) is None or not found.lives)


def test_an_attempt_that_floods_its_log_is_ended_and_most_of_the_log_removed(tmp_path, engine, monkeypatch):
    monkeypatch.setattr("altojax.cluster.engines.local.LOG_BYTES", 2**21)
    order = dummy_order(tmp_path / "a-1", ONE, "while True: print('x' * 100_000)")
    engine.start(order)
    [report] = reports_of(engine)
    assert (report.outcome, report.blame) == ("failed", "task")
    assert report.reason.startswith("printed more than")
    assert (order.folder / "attempt-1.log").stat().st_size == 2**20


@pytest.mark.parametrize("given", [None, "", ".", os.pathsep, f".{os.pathsep}{ROOT}"])
def test_a_worker_has_the_packages_of_who_serves_wherever_they_lie(tmp_path, monkeypatch, given):
    """Of a tree in which nothing is installed, too, and never what lies in its own working folder."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "altojax.py").touch()
    monkeypatch.chdir(tmp_path / "package" if given != "." else ROOT)
    (monkeypatch.delenv("PYTHONPATH", raising=False) if given is None else monkeypatch.setenv("PYTHONPATH", given))
    environment = worker_environment({}, None)
    where = [*WORKER[:2], "-c", "import altojax; print(altojax.__file__)"]
    done = subprocess.run(where, env=environment, cwd=tmp_path / "package", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(ROOT / "altojax" / "__init__.py")


def test_a_package_that_is_installed_stays_behind_the_standard_library(monkeypatch):
    monkeypatch.setattr(visible_gpus, "ROOT", Path(sysconfig.get_path("purelib")).resolve())
    assert visible_gpus.import_path("") == ""
