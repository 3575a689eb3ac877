"""Run folders and queues: their databases, and what these hold."""

import json
import shutil
import sqlite3

import pytest
from damage import ANYTHING, changed, damaged
from fuzzing import fuzz, run_verb
from hypothesis import strategies as st
from runs import write_finished_run, write_run

from altojax.cli import main
from jaxrun.store.journal import Journal
from twistjax.cli import main as twist

JSON = (("meta", "value"), ("events", "payload"), ("checkpoints", "manifest"), ("checkpoints", "files"))
CELLS = (
    ("meta", "value"),
    ("events", "kind"),
    ("events", "task"),
    ("events", "trial"),
    ("events", "payload"),
    ("events", "tick"),
    ("events", "wall_s"),
    ("points", "trial"),
    ("points", "step"),
    ("points", "samples"),
    ("points", "split"),
    ("points", "loss"),
    ("checkpoints", "files"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with curves, another with adapters, and a run of twistjax, each with a checkpoint."""
    root = tmp_path_factory.mktemp("runs")
    with_curves = write_run(root / "curves", tasks=("math",), trials=3)
    with_adapters = write_finished_run(root, tasks=("first",))
    with Journal.open(
        root / "twist", config_text="output_dir: x\nsubnetworks: {workers: 2, kappa: 0.5}\n", identity="d"
    ) as journal:
        journal.set("plan", {"rounds": 4, "steps": 2, "rows": 8})
        journal.set("clock", {"tokens": 100, "training_s": 2.0, "before_s": 3.0, "compiles": 1, "compile_s": 1.0})
    return {"curves": with_curves, "adapters": with_adapters, "twist": root / "twist"}


def look(kind, folder, capsys) -> None:
    """Everything that reads a run's journal."""
    if kind == "curves":
        run_verb(main, capsys, "status", str(folder))
        run_verb(main, capsys, "replay", str(folder))
    if kind == "adapters":
        run_verb(main, capsys, "export", str(folder), f"out={folder.parent}/out", "overwrite=true")
        run_verb(main, capsys, "status", str(folder))
    if kind == "twist":
        run_verb(twist, capsys, "status", str(folder))
        run_verb(twist, capsys, "report", str(folder))


@pytest.mark.parametrize("kind", ["curves", "adapters", "twist"])
def test_the_bytes_of_a_journal(kind, made, tmp_path, capsys):
    folder = shutil.copytree(made[kind], tmp_path / "run")
    whole = (folder / "journal.db").read_bytes()

    def read(content: bytes) -> None:
        for name in ("journal.db-wal", "journal.db-shm"):
            (folder / name).unlink(missing_ok=True)
        (folder / "journal.db").write_bytes(content)
        look(kind, folder, capsys)

    fuzz(
        read,
        damaged(whole),
        b"",
        b"SQLite format 3\0",
        whole[: len(whole) // 2],
        whole.replace(b"CREATE TABLE", b"\xff" * 12),
    )


@pytest.mark.parametrize("kind", ["curves", "adapters", "twist"])
def test_the_records_of_a_journal(kind, made, tmp_path, capsys):
    folder = shutil.copytree(made[kind], tmp_path / "run")
    rows = read_json_cells(folder / "journal.db")

    def read(change) -> None:
        shutil.copy(made[kind] / "journal.db", folder / "journal.db")
        change_database(folder / "journal.db", *change)
        look(kind, folder, capsys)

    parsed = st.sampled_from(rows).flatmap(
        lambda row: st.tuples(st.just(row[:3]), (changed(row[3]) | ANYTHING).map(json.dumps))
    )
    cells = st.tuples(
        st.sampled_from(CELLS).map(lambda cell: (*cell, None)),
        st.none()
        | st.integers(-9, 9)
        | st.floats()
        | st.binary(max_size=4)
        | st.sampled_from(["", "x", "{", "[]", "1e999", "[" * 3000]),
    )
    dropped = st.sampled_from(["meta", "events", "points", "checkpoints"]).map(
        lambda table: ((table, None, None), None)
    )
    fuzz(read, parsed | cells | dropped, (("meta", "value", 5), "true"), (("meta", "value", None), 1))


def read_json_cells(path):
    """Table, column, row and content of what a database keeps as JSON."""
    found = []
    database = sqlite3.connect(path)
    for table, column in JSON:
        for row, text in database.execute(f"SELECT rowid, {column} FROM {table} ORDER BY rowid LIMIT 40"):
            try:
                found.append((table, column, row, json.loads(text)))
            except ValueError:
                continue
    database.close()
    return found


def change_database(path, place, value) -> None:
    """Writes a value into one row of a column, or into all of it, or drops a table."""
    table, column, row = place
    database = sqlite3.connect(path)
    try:
        if column is None:
            database.execute(f"DROP TABLE {table}")
        elif row is None:
            database.execute(f"UPDATE OR IGNORE {table} SET {column} = ?", (value,))
        else:
            database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, row))
        database.commit()
    except (sqlite3.IntegrityError, OverflowError, UnicodeEncodeError):
        database.rollback()
    finally:
        database.close()
