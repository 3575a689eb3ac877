"""Whatever a task's journal holds, the page shows it or says in one line that it is damaged."""

import json
import sqlite3
from contextlib import closing

import pytest
from runs import write_run

from altojax.cluster.service.page import curves
from altojax.cluster.service.page.curves import read_losses, to_json
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal


def losses_with(run_dir, query: str, change) -> list:
    """What the page gets once the JSON of a journal was changed; `query` gives its table, column and row."""
    with closing(sqlite3.connect(run_dir / "journal.db")) as database, database:
        table, column, row, text = database.execute(query).fetchone()
        database.execute(
            f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (json.dumps(change(json.loads(text))), row)
        )
    return json.loads(to_json(read_losses(run_dir, {"math"})))


def test_half_a_character_is_shown_as_its_escape(tmp_path):
    run_dir = write_run(tmp_path / "run", tasks=("math",), trials=2)
    end = "SELECT 'events', 'payload', rowid, payload FROM events WHERE kind = 'end'"
    (losses,) = losses_with(run_dir, end, lambda payload: {**payload, "status": "\ud800"})
    assert "\\ud800" in {curve["status"] for curve in losses["curves"]}


@pytest.mark.parametrize("total", [None, {}, [], "many"])
def test_a_number_that_is_none_is_damage(tmp_path, total):
    run_dir = write_run(tmp_path / "run", tasks=("math",), trials=2)
    trials = "SELECT 'meta', 'value', rowid, value FROM meta WHERE key = 'user.trials'"
    with pytest.raises(UserError, match=r"journal\.db: damaged"):
        losses_with(run_dir, trials, lambda found: [{**found[0], "total_samples": total}, *found[1:]])


def test_of_a_long_journal_the_newest_is_read_and_a_line_says_so(tmp_path, monkeypatch):
    run_dir = write_run(tmp_path / "run", tasks=("math",), trials=2)
    with Journal.read(run_dir) as journal:
        count, newest = len(journal.points()), journal.points()[-1]
    for most, cut in ((count, False), (count - 1, True), (3, True)):
        monkeypatch.setattr(curves, "MOST_READ", most)
        (losses,) = read_losses(run_dir, {"math"})
        assert bool(losses.note) == cut and (f"only the newest {most} losses" in losses.note) == cut
        assert newest.loss in {curve.losses[-1] for curve in losses.curves}
    assert sum(len(curve.losses) for curve in losses.curves) <= 4


def test_a_record_beyond_all_measure_is_one_line(tmp_path, monkeypatch):
    run_dir = write_run(tmp_path / "run", tasks=("math",), trials=2)
    monkeypatch.setattr(curves, "RECORD_BYTES", 100)
    with pytest.raises(UserError, match=r"journal\.db") as refusal:
        read_losses(run_dir, {"math"})
    assert "\n" not in str(refusal.value)
