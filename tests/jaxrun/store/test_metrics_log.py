"""metrics.jsonl is strict JSON, one line a point, and is the journal's copy again after a crash."""

import json
import math

import numpy as np
import pytest

from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal, Point
from jaxrun.store.metrics import MetricsLog

POINTS = [
    Point("math", 0, 1, 2, 3, "train", 1.5, 1e-4, 0.5, 2.5),
    Point("math", "b", 2, 4, 6, "validation", math.nan),
    Point(None, None, 0, 0, 0, "base", -math.inf),
]


@pytest.fixture
def journal(tmp_path):
    with Journal.open(tmp_path / "run", config_text="", identity="x") as journal:
        yield journal


def refuse(text):
    raise AssertionError(f"{text} is not JSON")


def lines(log: MetricsLog) -> list[dict]:
    return [json.loads(line, parse_constant=refuse) for line in log.path.read_text().splitlines()]


def test_every_point_is_one_line_of_strict_json(journal):
    log = MetricsLog(journal.run_dir, journal)
    log.log(POINTS[:1])
    log.log([])
    log.log(POINTS[1:])
    names = ["task", "trial", "step", "samples", "tokens", "split", "loss", "lr", "time_s", "grad_norm"]
    assert [list(row) for row in lines(log)] == [names] * 3
    assert [list(row.values()) for row in lines(log)] == [
        ["math", 0, 1, 2, 3, "train", 1.5, 1e-4, 0.5, 2.5],
        ["math", "b", 2, 4, 6, "validation", None, None, None, None],
        [None, None, 0, 0, 0, "base", None, None, None, None],
    ]


def test_numpy_numbers_are_written_as_numbers(journal):
    log = MetricsLog(journal.run_dir, journal)
    log.log([Point("math", np.int64(1), np.int64(1), 2, 3, "train", np.float32(0.5))])
    assert lines(log)[0]["trial"] == 1 and lines(log)[0]["loss"] == 0.5


def test_rebuild_drops_a_torn_line_and_what_the_journal_forgot(journal):
    log = MetricsLog(journal.run_dir, journal)
    journal.append(0, points=POINTS[:1])
    log.log(POINTS)
    with log.path.open("a") as file:
        file.write('{"task": "ma')
    log.rebuild()
    assert [row["step"] for row in lines(log)] == [1]
    log.log(POINTS[1:2])
    assert [row["step"] for row in lines(log)] == [1, 2]


def test_a_place_that_cannot_be_written_is_one_line(journal):
    log = MetricsLog(journal.run_dir, journal)
    log.path = journal.run_dir / "journal.lock" / "metrics.jsonl"
    with pytest.raises(UserError, match="part of the path is a file"):
        log.log(POINTS)
