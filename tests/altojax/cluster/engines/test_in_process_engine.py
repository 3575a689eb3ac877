"""A task in a thread of this process: one at a time, stopped at a step, gone with its process."""

from dataclasses import replace

import pytest
from orders import make_order, reports_of, wait_for

from altojax.cluster.engines import in_process
from altojax.cluster.engines.attempts import End, raise_fence, read_end, write_end
from altojax.cluster.engines.engine import Report
from altojax.cluster.engines.in_process import HereEngine

GPUS = {"here": (0,)}


@pytest.fixture
def engine():
    made = HereEngine()
    yield made
    made.close()


@pytest.fixture
def stepping(monkeypatch):
    """Tasks that step until they are asked to stop."""

    def tune(folder, hosts, interrupt, out):
        print("stepping", file=out)
        wait_for(lambda: interrupt.requested)
        return 130

    monkeypatch.setattr(in_process, "tune", tune)


@pytest.mark.slow
def test_a_real_task_is_stopped_after_a_checkpoint_and_goes_on_to_its_end(tmp_path, engine):
    order = make_order(tmp_path / "sums-1", GPUS, mesh="{adapter: 1}", samples=100)
    engine.start(order)
    wait_for((order.folder / "run" / "metrics.jsonl").exists)
    engine.stop("sums-1", 1)
    assert reports_of(engine) == [Report("sums-1", 1, "halted")]
    assert "interrupted, with all saved; the same command resumes it" in (order.folder / "attempt-1.log").read_text()
    engine.start(replace(order, attempt=2))
    assert reports_of(engine) == [Report("sums-1", 2, "ended")]
    assert "resuming from tick" in (order.folder / "attempt-2.log").read_text()
    assert (order.folder / "run" / "report.html").exists()


def test_a_second_task_does_not_start_beside_the_first(tmp_path, engine, stepping):
    first, second = (make_order(tmp_path / name, GPUS) for name in ("a-1", "b-2"))
    engine.start(first)
    engine.start(first)
    engine.start(second)
    [report] = engine.poll()
    assert report.job == "b-2" and report.outcome == "failed" and "a-1 runs" in report.reason
    engine.stop("b-2", 1)
    assert engine.poll() == []
    engine.stop("a-1", 1)
    assert reports_of(engine) == [Report("a-1", 1, "halted")]


def test_closing_stops_it_after_a_checkpoint(tmp_path, engine, stepping):
    order = make_order(tmp_path / "a-1", GPUS)
    engine.start(order)
    engine.close()
    assert read_end(order.folder, 1) == End(code=130, outcome="halted")


def test_one_that_is_replaced_stops_and_says_nothing(tmp_path, engine, stepping):
    order = make_order(tmp_path / "a-1", GPUS)
    engine.start(order)
    raise_fence(order.folder, 2)
    [report] = reports_of(engine)
    assert report.outcome == "failed" and report.blame == "node" and "a newer attempt" in report.reason
    assert read_end(order.folder, 1) is None
    engine.start(order)
    [again] = engine.poll()
    assert again.outcome == "failed" and "a newer attempt" in again.reason


def test_a_crash_is_the_tasks_and_what_an_earlier_process_ran_is_gone(tmp_path, engine, monkeypatch):
    def crash(folder, hosts, interrupt, out):
        raise ValueError("no such luck")

    monkeypatch.setattr(in_process, "tune", crash)
    order = make_order(tmp_path / "a-1", GPUS)
    engine.start(order)
    assert reports_of(engine) == [Report("a-1", 1, "failed", "ValueError: no such luck", "task")]
    assert "Traceback" in (order.folder / "attempt-1.log").read_text()

    ended, lost = make_order(tmp_path / "b-2", GPUS), make_order(tmp_path / "c-3", GPUS)
    write_end(ended.folder, 1, End(code=0, outcome="ended"))
    (lost.folder / "attempt-1.log").touch()
    engine.start(ended)
    engine.adopt([lost])
    reports = engine.poll()
    assert reports[0] == Report("b-2", 1, "ended")
    assert (reports[1].job, reports[1].outcome, reports[1].blame) == ("c-3", "failed", "node")
    never = make_order(tmp_path / "d-4", GPUS)
    engine.adopt([never])
    assert reports_of(engine) == [Report("d-4", 1, "failed", "ValueError: no such luck", "task")]
