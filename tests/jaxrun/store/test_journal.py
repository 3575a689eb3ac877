"""The journal loses nothing, mixes nothing up and overwrites nothing unasked."""

import json
import math
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from jaxrun.files.folders import replace_folder
from jaxrun.process.errors import UserError
from jaxrun.store.journal import FORMAT_VERSION, Event, Journal, Point
from jaxrun.store.run_folder import JOURNAL_NAME, LOCK_NAME

HERE = Path(__file__).parent
MAKES = ("adapters", "checkpoints")
CONFIG = {
    "config_text": "seed: 1\nsearch: {rank: [8, 16]}\n",
    "identity": {"seed": 1, "search": {"rank": [8, 16]}},
    "makes": MAKES,
}
OTHER = {
    "config_text": "seed: 2\nsearch: {rank: [8, 32]}\nslots: 4\n",
    "identity": {"seed": 2, "search": {"rank": [8, 32]}, "lengths": [4]},
    "makes": MAKES,
}


def write_checkpoint(journal: Journal, tick: int, content: str = "weights") -> str:
    name = f"checkpoints/{tick}"
    (journal.run_dir / "checkpoints").mkdir(exist_ok=True)
    with replace_folder(journal.run_dir / name) as folder:
        (folder / "state").mkdir()
        (folder / "state" / "a.bin").write_text(content)
        (folder / "b.bin").write_text(content)
    journal.commit_checkpoint(tick, {"at": tick}, [name])
    return name


@pytest.fixture
def journal(tmp_path):
    with Journal.open(tmp_path / "run", **CONFIG) as journal:
        yield journal


def said(function, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_appended_reads_back(journal):
    points = [
        Point("math", 0, 1, 2, 3, "train", math.nan),
        Point("math", "0", 1, 2, 3, "train", math.inf, 1e-4, 0.5),
        Point("code", 1, 2, 4, 6, "validation", 1.25, 1e-4, 0.75),
        Point("code", 1, 2, 4, 6, "train", 1.25, 1e-4, 0.75, 2.5),
        Point(None, None, 0, 0, 0, "base", None),
    ]
    events = [Event("start", "math", 0, {"slot": 1, "time_s": 0.1}), Event("run_start")]
    journal.append(4, events, points)
    assert journal.events() == events
    assert [event.tick for event in journal.events()] == [4, 4]
    assert journal.events("run_start") == events[1:]
    assert [repr(point) for point in journal.points()] == [repr(point) for point in points]
    assert [point.trial for point in journal.points()] == [0, "0", 1, 1, None]
    assert journal.points(newest=2) == points[3:]
    with Journal.read(journal.run_dir) as reader:
        assert reader.events() == events


def test_events_are_counted_by_task_among_the_newest(journal):
    told = [("end", "math"), ("end", "code"), ("start", "math"), ("end", "math"), ("end", "math")]
    journal.append(1, [Event(kind, task, 0, {}) for kind, task in told], [])
    assert journal.count("end", newest=100) == {"math": 3, "code": 1}
    assert journal.count("end", newest=3) == {"math": 2, "code": 1}
    assert journal.count("other", newest=3) == {}


def test_numpy_numbers_become_plain_ones(journal):
    point = Point(
        "math", np.int64(3), np.int32(1), np.int64(2), np.int64(3), "train", np.float32(0.5), np.float32(0.25)
    )
    journal.append(np.int64(0), [Event("best", "math", np.int64(3), {"loss": np.float32(0.5)})], [point])
    assert journal.points() == [Point("math", 3, 1, 2, 3, "train", 0.5, 0.25)]
    assert journal.events() == [Event("best", "math", 3, {"loss": 0.5})]


def test_an_append_is_all_or_nothing(journal):
    journal.append(0, [Event("one")])
    with pytest.raises(TypeError, match="expected JSON data"):
        journal.append(1, [Event("two"), Event("three", payload={"x": object()})])
    with pytest.raises(sqlite3.IntegrityError):
        journal.append(1, [Event("two")], [Point("math", 0, 1, 1, 1, None, 0.5)])  # type: ignore[arg-type]
    assert [event.kind for event in journal.events()] == ["one"]


def test_the_decision_log_knows_no_clock(journal):
    journal.append(0, [Event("run_start"), Event("start", "math", 0, {"slot": 1, "time_s": 3.5})])
    journal.append(1, [Event("checkpoint"), Event("rung", "math", None, {"kept": [{"a": 1, "at_s": 2.0}], "index": 0})])
    assert journal.decision_log() == [
        '[0,"start","math",0,{"slot":1}]',
        '[1,"rung","math",null,{"index":0,"kept":[{"a":1}]}]',
    ]


def test_metadata_is_json_and_apart_from_the_journals_own(journal):
    assert journal.get("format_version") is None
    journal.set("progress", {"done": 3})
    journal.set("progress", {"done": 4})
    assert journal.get("progress") == {"done": 4}
    assert journal.get("gone", "default") == "default"


def test_rewind_forgets_what_came_after_a_checkpoint(journal):
    point = Point("math", 0, 1, 2, 3, "train", 0.5)
    journal.append(1, [Event("before")], [point])
    write_checkpoint(journal, 1)
    journal.append(1, [Event("same tick, later")], [point])
    journal.append(2, [Event("after")], [point])
    write_checkpoint(journal, 2)
    journal.rewind(1)
    assert [event.kind for event in journal.events()] == ["before"]
    assert len(journal.points()) == 1
    checkpoint = journal.last_checkpoint()
    assert checkpoint is not None and checkpoint.tick == 1
    assert journal.remove_unnamed("checkpoints") == ["checkpoints/2"]
    journal.rewind(-1)
    assert journal.events() == [] and journal.points() == [] and journal.last_checkpoint() is None


def test_a_checkpoint_comes_back(journal):
    assert journal.last_checkpoint() is None
    write_checkpoint(journal, 7)
    checkpoint = journal.last_checkpoint()
    assert checkpoint is not None
    assert (checkpoint.tick, checkpoint.manifest) == (7, {"at": 7})


def test_a_checkpoint_row_needs_its_files(journal):
    write_checkpoint(journal, 1)
    with pytest.raises(FileNotFoundError):
        journal.commit_checkpoint(2, {}, ["checkpoints/2"])
    assert "leads outside" in said(journal.commit_checkpoint, 2, {}, ["../elsewhere"])
    checkpoint = journal.last_checkpoint()
    assert checkpoint is not None and checkpoint.tick == 1


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "state" / "a.bin").write_text("wEights"), "state/a.bin: not as written"),
        (lambda folder: (folder / "b.bin").unlink(), "b.bin: missing"),
        (lambda folder: (folder / "c.bin").write_text("extra"), "c.bin: new"),
        (shutil.rmtree, ": named by the last checkpoint but No such file or directory"),
    ],
)
def test_a_damaged_checkpoint_is_named_file_by_file(journal, damage, named):
    folder = journal.run_dir / write_checkpoint(journal, 3)
    damage(folder)
    message = said(journal.last_checkpoint)
    assert message.startswith(str(folder)) and named in message


def test_pruning_removes_folders_only_after_their_rows(journal):
    for tick in range(4):
        write_checkpoint(journal, tick)
    shared = journal.run_dir / "shared"
    shared.write_text("both")
    journal.commit_checkpoint(4, {}, ["checkpoints/0", "shared"])
    journal.commit_checkpoint(5, {}, ["shared"])
    assert journal.prune_checkpoints(keep=2) == ["checkpoints/1", "checkpoints/2", "checkpoints/3"]
    assert journal.named_folders() == {"checkpoints/0", "shared"}
    (journal.run_dir / "checkpoints" / "9").mkdir()
    assert journal.remove_unnamed("checkpoints") == ["checkpoints/9"]
    assert journal.prune_checkpoints() == ["checkpoints/0"]
    assert shared.exists() and journal.last_checkpoint() is not None


def test_one_writer_any_number_of_readers(journal):
    message = said(Journal.open, journal.run_dir, **CONFIG)
    assert "another process (process " in message and "expected one at a time" in message
    with Journal.read(journal.run_dir) as one, Journal.read(journal.run_dir) as two:
        journal.append(0, [Event("live")])
        assert one.events() == two.events() == [Event("live")]
        with pytest.raises(RuntimeError, match="opened for reading"):
            one.append(0, [Event("no")])
    journal.close()
    journal.close()
    with Journal.open(journal.run_dir, **CONFIG) as again:
        assert again.events() == [Event("live")]
    with pytest.raises(RuntimeError, match="closed"):
        again.append(0, [])


def test_another_config_is_refused_by_the_keys_that_differ(journal):
    journal.append(0, [Event("kept")])
    journal.close()
    message = said(Journal.open, journal.run_dir, **OTHER)
    assert "a run whose config differs in seed, search.rank.1, lengths; expected" in message
    with Journal.open(journal.run_dir, **CONFIG) as again:
        assert again.events() == [Event("kept")]
        assert again.config_text == CONFIG["config_text"]


def test_what_differs_in_nothing_that_counts_goes_on_and_is_kept(journal):
    journal.append(0, [Event("kept")])
    journal.close()
    seen = []

    def differences(old, new):
        seen.append((old, new))
        return []

    with Journal.open(journal.run_dir, **OTHER, differences=differences) as again:
        assert again.events() == [Event("kept")]
        assert (again.config_text, again.identity) == (OTHER["config_text"], OTHER["identity"])
    assert seen == [(CONFIG["identity"], OTHER["identity"])]
    assert "differs in seed" in said(Journal.open, journal.run_dir, **CONFIG)


def test_a_run_of_before_gradient_norms_is_read_and_goes_on_with_them(journal):
    old, new = Point("math", 0, 1, 2, 3, "train", 0.5), Point("math", 0, 2, 4, 6, "train", 0.25, grad_norm=1.5)
    journal.append(0, points=[old])
    journal.close()
    with closing(sqlite3.connect(journal.run_dir / JOURNAL_NAME)) as database, database:
        database.execute("ALTER TABLE points DROP COLUMN grad_norm")
    with Journal.read(journal.run_dir) as before:
        assert before.points() == [old]
    with Journal.open(journal.run_dir, **CONFIG) as again:
        again.append(1, points=[new])
        assert again.points() == [old, new]


def test_a_run_that_does_not_say_what_it_is_cannot_go_on(journal):
    journal.close()
    with sqlite3.connect(journal.run_dir / "journal.db") as database:
        database.execute("DELETE FROM meta WHERE key = 'identity'")
    assert "what an older version did not keep" in said(Journal.open, journal.run_dir, **CONFIG)
    with Journal.read(journal.run_dir) as read:
        assert read.config_text == CONFIG["config_text"]


def test_a_newer_format_is_refused(journal):
    journal.close()
    with sqlite3.connect(journal.run_dir / JOURNAL_NAME) as database:
        database.execute("UPDATE meta SET value = ? WHERE key = 'format_version'", (str(FORMAT_VERSION + 1),))
    database.close()
    for opening in (lambda: Journal.open(journal.run_dir, **CONFIG), lambda: Journal.read(journal.run_dir)):
        assert "written by a newer version" in said(opening)


def test_a_corrupt_journal_is_one_line(journal):
    journal.append(0, [Event("x", payload={"text": "y" * 20_000})])
    journal.close()
    path = journal.run_dir / JOURNAL_NAME
    whole = path.read_bytes()
    for content in (b"not a database at all" * 100, whole[:5000], whole[:4096] + b"\xff" * 4096 + whole[8192:]):
        path.write_bytes(content)
        assert "corrupt" in said(Journal.open, journal.run_dir, **CONFIG)
        assert path.read_bytes() == content


def test_only_what_makes_sense_of_records_says_that_they_are_damaged(journal):
    journal.append(0, [Event("rung", payload={"kept": "many"})])
    with Journal.read(journal.run_dir) as reader:
        with pytest.raises(UserError, match=r"journal\.db: damaged \(ValueError: .*'many'"), reader.interpreted():
            int(reader.events("rung")[0].payload["kept"])
        with pytest.raises(UserError, match="another run"), reader.interpreted():
            raise UserError("another run")
    with pytest.raises(ValueError, match="our own fault"), Journal.read(journal.run_dir):
        raise ValueError("our own fault")


def test_a_run_killed_before_its_first_row_starts_again(tmp_path):
    (tmp_path / LOCK_NAME).write_text("process 1 on host")
    (tmp_path / JOURNAL_NAME).write_bytes(b"")
    assert "holds nothing yet" in said(Journal.read, tmp_path)
    with Journal.open(tmp_path, **CONFIG) as journal:
        assert journal.events() == []


def test_reading_needs_a_run(tmp_path):
    assert "no run here" in said(Journal.read, tmp_path)
    assert "no run here" in said(Journal.read, tmp_path / "gone")


def test_reading_works_in_a_folder_that_cannot_be_written(journal, monkeypatch):
    journal.append(0, [Event("kept")])
    monkeypatch.setattr("os.access", lambda path, mode, **named: False)
    with Journal.read(journal.run_dir) as reader:
        journal.append(1, [Event("later, unseen by the copy")])
        assert reader.events() == [Event("kept")]


def test_overwriting_removes_only_what_a_run_makes(journal):
    write_checkpoint(journal, 0)
    journal.append(0, [Event("old")])
    (journal.run_dir / "adapters").mkdir()
    (journal.run_dir / "notes.txt").write_text("mine")
    journal.close()
    with Journal.open(journal.run_dir, **OTHER, overwrite=True) as anew:
        assert anew.events() == [] and anew.last_checkpoint() is None
        assert anew.config_text == OTHER["config_text"]
        kept = {path.name for path in anew.run_dir.iterdir() if not path.name.startswith("journal.")}
        assert kept == {"notes.txt"}


def test_overwriting_that_is_killed_half_way_still_counts_as_a_run(journal, monkeypatch):
    write_checkpoint(journal, 0)
    (journal.run_dir / "adapters").mkdir()
    journal.close()
    rename, budget = Path.rename, 1

    def dying_rename(self, target):
        nonlocal budget
        if budget == 0:
            raise KeyboardInterrupt
        budget -= 1
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dying_rename)
    with pytest.raises(KeyboardInterrupt):
        Journal.open(journal.run_dir, **OTHER, overwrite=True)
    monkeypatch.undo()
    assert (journal.run_dir / JOURNAL_NAME).exists()
    with Journal.open(journal.run_dir, **OTHER, overwrite=True) as anew:
        assert {path.name for path in anew.run_dir.iterdir() if not path.name.startswith("journal.")} == set()


def test_a_folder_that_no_run_made_is_left_alone(tmp_path):
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "mine").write_text("mine")
    for overwrite in (False, True):
        assert "holds adapters but no run's journal" in said(Journal.open, tmp_path, **CONFIG, overwrite=overwrite)
    shutil.rmtree(tmp_path / "adapters")
    (tmp_path / "thesis.tex").write_text("mine")
    assert "holds thesis.tex but" in said(Journal.open, tmp_path, **CONFIG, overwrite=True)
    with Journal.open(tmp_path, **CONFIG):
        assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_full_disk_is_one_line_and_costs_nothing_recorded(journal):
    journal.append(0, [Event("kept")])
    pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count = {pages + 2}")
    message = said(journal.append, 1, [Event("big", payload={"text": "x" * 100_000}), Event("two")])
    assert message.endswith("no space left on the device, expected room to write")
    assert journal.events() == [Event("kept")]
    journal._database.execute(f"PRAGMA max_page_count = {pages + 1000}")
    journal.append(1, [Event("room again")])
    assert [event.kind for event in journal.events()] == ["kept", "room again"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file, expected a folder" in said(Journal.open, tmp_path / "file", **CONFIG)
    assert "expected a place you may write to" in said(Journal.open, "/proc/nothing", **CONFIG)


def test_a_process_killed_at_random_instants_loses_nothing(tmp_path):
    command = [sys.executable, str(HERE / "journal_killer.py"), str(tmp_path / "run"), "40", "11"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    reached = json.loads(done.stdout)["reached"]
    assert len(reached) == 40 and reached == sorted(reached) and reached[-1] >= 29
