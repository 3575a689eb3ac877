"""The engine that docs/extend/engine.md shows keeps what the page says must hold, with a batch system of processes."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from orders import dummy_command, dummy_order, reports_of, wait_for

from altojax.cluster.engines.attempts import newest_attempt
from altojax.cluster.engines.engine import Report
from altojax.cluster.engines.local import WORKER
from altojax.cluster.service import engine_config
from altojax.cluster.service.verbs.serve import ServeConfig
from jaxrun.config.config import load_config
from jaxrun.config.config_keys import keys_of
from jaxrun.process.errors import UserError

PAGE = (Path(__file__).parents[4] / "docs" / "extend" / "engine.md").read_text()
GPUS = {"batch": (0, 1)}
WAITS = "time.sleep(60)"
DEAF = "signal.signal(signal.SIGTERM, lambda *_: None); (folder / 'deaf').touch(); time.sleep(60)"


class Processes:
    """A batch system whose jobs are processes of this host."""

    def __init__(self):
        self.jobs: dict[str, subprocess.Popen] = {}
        self.submitted: list[tuple[str, int]] = []

    def submit(self, name, command, gpus):
        assert name not in self.names()
        self.submitted.append((name, gpus))
        self.jobs[name] = subprocess.Popen(command, env={"JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL)

    def names(self):
        return {name for name, job in self.jobs.items() if job.poll() is None}

    def signal(self, name, number):
        self.jobs[name].send_signal(number)


@pytest.fixture
def batch():
    made = Processes()
    yield made
    for job in made.jobs.values():
        job.kill()
        job.wait()


@pytest.fixture
def shown(batch, monkeypatch):
    """All names of the page's blocks, with what they register known until the test ends."""
    monkeypatch.setattr(engine_config, "REGISTERED", dict(engine_config.REGISTERED))
    names: dict = {"connect": lambda: batch, "__name__": "house_batch"}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "engine.md", "exec"), names)
    yield SimpleNamespace(**names)
    monkeypatch.undo()
    engine_config.register()


@pytest.fixture
def make_engine(batch, shown):
    return lambda grace_s=60.0: shown.BatchEngine(batch, gpus=4, command=dummy_command(), grace_s=grace_s)


def began(order):
    return (order.folder / "began").exists


def test_an_attempt_runs_to_its_end_once_however_often_it_is_started(tmp_path, batch, make_engine):
    engine, order = make_engine(), dummy_order(tmp_path / "a-1", GPUS, "say('ended', 0)")
    engine.start(order)
    engine.start(order)
    assert reports_of(engine) == [Report("a-1", 1, "ended")]
    engine.start(order)
    assert reports_of(engine) == [Report("a-1", 1, "ended")]
    assert [gpus for _, gpus in batch.submitted] == [2]
    assert engine.nodes() == {"batch": 4}


def test_one_that_is_told_to_stop_saves_and_the_next_attempt_is_another_job(tmp_path, batch, make_engine):
    engine, order = make_engine(), dummy_order(tmp_path / "a-1", GPUS, WAITS)
    engine.start(order)
    wait_for(began(order))
    assert engine.poll() == []
    engine.stop("a-1", 1)
    engine.stop("b-2", 1)
    assert reports_of(engine) == [Report("a-1", 1, "halted")]
    (order.folder / "does.py").write_text("say('ended', 0)")
    engine.start(replace(order, attempt=2))
    assert reports_of(engine) == [Report("a-1", 2, "ended")]
    assert len({name for name, _ in batch.submitted}) == 2 and newest_attempt(order.folder) == 2


def test_one_that_does_not_stop_in_time_is_killed(tmp_path, make_engine):
    engine, order = make_engine(grace_s=0.2), dummy_order(tmp_path / "a-1", GPUS, DEAF)
    engine.start(order)
    wait_for((order.folder / "deaf").exists)
    engine.stop("a-1", 1)
    [report] = reports_of(engine)
    assert report.outcome == "halted" and "was killed" in report.reason


def test_a_job_that_is_lost_is_the_nodes_fault(tmp_path, batch, make_engine):
    engine, order = make_engine(), dummy_order(tmp_path / "a-1", GPUS, WAITS)
    engine.start(order)
    wait_for(began(order))
    [job] = batch.jobs.values()
    job.kill()
    assert reports_of(engine) == [Report("a-1", 1, "failed", "its job has gone", "node")]


def test_another_engine_takes_over_what_runs_has_ended_and_was_never_begun(tmp_path, batch, make_engine):
    first = make_engine()
    runs = dummy_order(tmp_path / "runs-1", GPUS, WAITS)
    ended, never = (dummy_order(tmp_path / name, GPUS, "say('ended', 0)") for name in ("ended-2", "never-3"))
    for order in (runs, ended):
        first.start(order)
        wait_for(began(order))
    wait_for(lambda: len(batch.names()) == 1)
    first.close()
    second = make_engine()
    second.adopt([runs, ended, never])
    assert {report.job for report in reports_of(second, 2)} == {"ended-2", "never-3"}
    second.stop("runs-1", 1)
    assert reports_of(second) == [Report("runs-1", 1, "halted")]
    assert len(batch.submitted) == 3


def test_an_attempt_that_a_newer_one_has_replaced_is_not_begun(tmp_path, batch, make_engine):
    engine, order = make_engine(), dummy_order(tmp_path / "a-1", GPUS, "say('ended', 0)", attempt=2)
    engine.start(order)
    assert reports_of(engine) == [Report("a-1", 2, "ended")]
    engine.start(replace(order, attempt=1))
    [report] = reports_of(engine)
    assert (report.attempt, report.outcome, report.blame) == (1, "failed", "node")
    assert len(batch.submitted) == 1


def test_a_registered_engine_is_a_kind_like_any_other_until_it_is_not(tmp_path, batch, shown):
    config = load_config(ServeConfig, {}, ["engine.kind=batch", "engine.gpus=8"], source="serve")
    engine = config.engine.engine(tmp_path)
    assert (engine.nodes(), engine._command, engine._batch) == ({"batch": 8}, tuple(WORKER), batch)
    assert {"worker", "gpus"} <= {key.name for key in keys_of(ServeConfig) if key.section is shown.BatchSection}
    with pytest.raises(UserError, match=r"engine: .*one of local, here, slurm, ray, batch \(did you mean 'batch'\?\)"):
        load_config(ServeConfig, {"engine": "bach"}, source="serve")
    shown.register(shown.BatchSection)

    class Other(engine_config.Section):
        kind: Literal["batch"]

    with pytest.raises(ValueError, match="Other: its kind 'batch' is that of BatchSection already"):
        shown.register(Other)
