"""A run's record starts from its last checkpoint; a process that does not lead writes nothing."""

import json

import pytest

from jaxrun.config.config import StrictModel
from jaxrun.store.journal import Journal
from jaxrun.store.records import Event, Point
from jaxrun.store.run_log import CHECKPOINTS, RunLog


class Config(StrictModel):
    """A run that does nothing.

    Attributes:
        seed: A key.
    """

    seed: int = 0


@pytest.fixture
def journal(tmp_path):
    with Journal.open(tmp_path / "run", config_text="seed: 0\n", identity={}) as journal:
        yield journal


def point(step: int) -> Point:
    return Point("sums", "trial-0", step, step, step, "train", 1.0 / step)


def test_what_came_after_the_last_checkpoint_is_forgotten_in_every_file(journal):
    log = RunLog(Config(), journal, None, {"device": "cpu"})
    for step in (1, 2):
        log.add(step, [Event("start", "sums", "trial-0")], [point(step)])
        folder = journal.run_dir / CHECKPOINTS / f"state.{step}"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"w")
        if step == 1:
            log.commit(step, {"samples": 1}, [f"{CHECKPOINTS}/state.1"])
    again = RunLog(Config(), journal, journal.last_checkpoint(), {"device": "cpu"})
    assert [one.tick for one in again.events("start")] == [1]
    assert [one.tick for one in again.events("run_start")] == [0, 1]
    lines = (journal.run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]
    assert [one.name for one in (journal.run_dir / CHECKPOINTS).iterdir()] == ["state.1"]
    ended = RunLog(Config(), journal, journal.last_checkpoint(), {}, ended=True)
    ended.add(5, [Event("finish")], [])
    assert [one.tick for one in RunLog(Config(), journal, journal.last_checkpoint(), {}, ended=True).events("finish")]


def test_a_process_that_does_not_lead_records_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = RunLog(Config(), None, None, {})
    log.add(1, [Event("start")], [point(1)])
    log.commit(1, {}, ["missing"])
    log.note("clock", 1)
    log.close()
    assert log.events() == [] and log.noted("clock", 7) == 7
    assert not list(tmp_path.iterdir())
