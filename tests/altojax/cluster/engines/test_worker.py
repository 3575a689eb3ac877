"""The worker of an attempt: it says how it ended, in one line, and nothing once a newer attempt has taken its place."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from orders import ROOT, make_order, wait_for

from altojax.cluster.engines import worker
from altojax.cluster.engines.attempts import End, judge, newest_attempt, raise_fence, read_end, write_end
from altojax.cluster.engines.local import WORKER
from jaxrun.process.errors import Failure, UserError
from jaxrun.store.run_folder import Occupied, take_lock


@pytest.fixture
def order(tmp_path):
    return make_order(tmp_path / "sums-1", {}, mesh="{adapter: 1}")


def run(order):
    return worker.main([str(order.folder), str(order.attempt)])


def test_it_takes_no_module_from_the_folder_in_which_its_queue_is_served(tmp_path):
    for name in ("altojax", "json", "argparse"):
        (tmp_path / f"{name}.py").write_text("open('taken', 'w')")
    command = [*WORKER, str(tmp_path / "no-task"), "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "no-task" in done.stderr and not (tmp_path / "taken").exists(), done.stderr


def test_a_task_outside_its_tenants_roots_is_not_begun(order, tmp_path):
    (order.folder / "roots.json").write_text(json.dumps({"read": [str(tmp_path / "data")], "write": [str(tmp_path)]}))
    (order.folder / "sums.jsonl").rename(order.folder / "theirs.jsonl")
    (order.folder / "sums.jsonl").symlink_to("/etc/passwd")
    assert run(order) == 2
    end = read_end(order.folder, 1)
    assert (end.outcome, end.blame) == ("failed", "task")
    assert end.reason.startswith("tasks.0.data.train: ") and "leads outside" in end.reason
    assert not (order.folder / "run").exists()


def test_told_to_stop_before_there_is_anything_to_save_it_stops_at_once(order, monkeypatch):
    monkeypatch.setattr("altojax.cluster.engines.worker.await_writer", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert run(order) == 130
    end = read_end(order.folder, 1)
    assert end.outcome == "halted" and not (order.folder / "run").exists()


def test_wrong_input_fails_with_its_one_line(order, capfd):
    text = (order.folder / "task.yaml").read_text()
    (order.folder / "task.yaml").write_text(text.replace("learning_rate: 3.0e-3", "learning_rat: 3.0e-3"))
    assert run(order) == 2
    end = read_end(order.folder, 1)
    assert (end.outcome, end.blame) == ("failed", "task") and "did you mean 'learning_rate'?" in end.reason
    assert f"altojax: failed: {end.reason}\n" in capfd.readouterr().err


def test_memory_that_ran_out_is_told_with_what_would_fit(order, monkeypatch):
    def exhausts(folder, hosts):
        raise Failure("out of memory on cpu; expected slots=2")

    monkeypatch.setattr(worker, "tune", exhausts)
    assert run(order) == 2
    assert read_end(order.folder, 1).reason == "out of memory on cpu; expected slots=2"


@pytest.mark.parametrize(
    ("error", "blame", "begins"),
    [
        (MemoryError("48 GiB"), "task", "out of memory: 48 GiB"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile trying"), "task", "out of memory: RESOURCE_EXHAUSTED"),
        (RuntimeError("CUDA_ERROR_ECC_UNCORRECTABLE: at"), "node", "RuntimeError: CUDA_ERROR_ECC"),
        (RuntimeError("Unable to initialize backend 'cuda'"), "node", "RuntimeError: Unable"),
        (ValueError("a\n\tbug"), "task", "ValueError: a bug"),
    ],
)
def test_what_a_crash_says_and_whose_fault_it_is(order, monkeypatch, error, blame, begins):
    def crash(folder, hosts):
        raise error

    monkeypatch.setattr(worker, "tune", crash)
    assert run(order) == 1
    end = read_end(order.folder, 1)
    assert (end.outcome, end.blame) == ("failed", blame) and end.reason.startswith(begins)
    assert len(end.reason.splitlines()) == 1


def test_gpus_that_jax_does_not_find_are_the_nodes_fault(order, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setattr("jax.local_device_count", lambda: 1)
    assert run(order) == 1
    end = read_end(order.folder, 1)
    assert (end.blame, end.reason) == ("node", "DevicesMissing: given GPUs 4,5, but JAX finds 1")
    monkeypatch.setattr("jax.local_device_count", lambda: 2)
    worker.check_devices(os.environ)

    def assertion():
        raise AssertionError

    monkeypatch.setattr("jax.local_device_count", assertion)
    with pytest.raises(worker.DevicesMissing, match=r"but JAX finds 0$"):
        worker.check_devices(os.environ)


def test_a_replaced_attempt_neither_begins_nor_says_that_it_ended(order, monkeypatch, capfd):
    raise_fence(order.folder, 2)
    assert run(order) == worker.REPLACED
    assert not (order.folder / "run").exists() and read_end(order.folder, 1) is None
    third = replace(order, attempt=2)
    monkeypatch.setattr(worker, "tune", lambda folder, hosts: 0 * raise_fence(folder, 3))
    assert run(third) == worker.REPLACED
    assert read_end(order.folder, 2) is None
    assert "attempt 2 gives way to attempt 3" in capfd.readouterr().err
    assert not write_end(order.folder, 2, End(code=0, outcome="ended"))


def test_a_running_attempt_that_is_replaced_writes_no_more(order):
    program = """
import sys, time
from pathlib import Path
from altojax.cluster.engines import worker

def tune(folder, hosts):
    while True:
        (folder / "written").write_text(str(time.time()))
        time.sleep(0.01)

worker.tune, worker._LOOK_S = tune, 0.05
sys.exit(worker.main(sys.argv[1:]))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", program, order.folder, "1"], env=environment, stderr=subprocess.PIPE, text=True
    )
    wait_for((order.folder / "written").exists)
    raise_fence(order.folder, 2)
    _, said = process.communicate(timeout=60)
    assert process.returncode == worker.REPLACED and "gives way to attempt 2" in said
    assert read_end(order.folder, 1) is None


def test_it_waits_for_an_older_attempt_to_let_go_of_the_run(tmp_path, monkeypatch):
    (tmp_path / "journal.db").touch()
    held = take_lock(tmp_path)
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            os.close(held)

    monkeypatch.setattr(time, "sleep", sleep)
    worker.await_writer(tmp_path)
    assert len(naps) == 3
    held = take_lock(tmp_path)
    with pytest.raises(Occupied, match="another process"):
        worker.await_writer(tmp_path, patience_s=0.0)
    os.close(held)
    assert worker.end_of(Occupied("x")).blame == "node"


def test_a_fence_only_rises_and_a_damaged_one_is_told_in_one_line(tmp_path):
    assert newest_attempt(tmp_path) == 0
    assert raise_fence(tmp_path, 2) and not raise_fence(tmp_path, 1) and raise_fence(tmp_path, 2)
    assert newest_attempt(tmp_path) == 2
    (tmp_path / "fence.json").write_text("[2")
    with pytest.raises(UserError, match=r"fence\.json: not valid JSON"):
        newest_attempt(tmp_path)


@pytest.mark.parametrize(
    ("said", "told", "outcome", "blame"),
    [
        ({"code": 0, "outcome": "ended"}, True, "ended", "task"),
        ({"code": 130, "outcome": "halted"}, True, "halted", "task"),
        ({"code": 130, "outcome": "halted"}, False, "failed", "node"),
        (None, True, "halted", "task"),
        (None, False, "failed", "node"),
        ({"code": 0, "outcome": "done"}, False, "failed", "task"),
    ],
)
def test_what_becomes_of_an_attempt_by_what_it_said_and_what_it_was_told(order, said, told, outcome, blame):
    if said is not None:
        (order.folder / "attempt-1.json").write_text(json.dumps(said))
    gone = End(code=1, outcome="failed", reason="gone", blame="node")
    report = judge(order, told=told, gone=gone)
    assert (report.outcome, report.blame) == (outcome, blame)
    assert bool(report.reason) == ((said, outcome) != (said, "ended") and not (said and outcome == "halted"))
