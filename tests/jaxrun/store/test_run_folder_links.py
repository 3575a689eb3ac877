"""A link in a run's folder is refused: what stands behind it is neither read, nor written, nor removed."""

import os

import pytest

from jaxrun.process.errors import UserError
from jaxrun.store import run_folder
from jaxrun.store.journal import Journal
from jaxrun.store.metrics import MetricsLog
from jaxrun.store.records import Point
from jaxrun.store.run_folder import JOURNAL_NAME, LOCK_NAME, folder_in, is_held, refuse_links, take_lock

RUN = {"config_text": "a: 1\n", "identity": "x", "makes": ("checkpoints", "sums", "wandb", "metrics.jsonl")}


@pytest.fixture
def run(tmp_path):
    """A run that has ended, beside a folder and a file of somebody else."""
    Journal.open(tmp_path / "run", **RUN).close()
    (tmp_path / "run" / "sums" / "best").mkdir(parents=True)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("theirs")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _nothing_of_theirs_has_changed(run):
    yield
    assert [path.name for path in (run.parent / "theirs").iterdir()] == ["file"]
    assert (run.parent / "theirs" / "file").read_text() == "theirs"


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["soft", "hard"])
def test_a_lock_that_is_a_link_is_not_written(run, make):
    (run / LOCK_NAME).unlink()
    make(run.parent / "theirs" / "file", run / LOCK_NAME)
    assert not is_held(run)
    for refused in (lambda: take_lock(run), lambda: Journal.open(run, overwrite=True, **RUN)):
        with pytest.raises(UserError, match=LOCK_NAME):
            refused()


def test_a_lock_that_is_a_pipe_is_not_waited_for(run):
    (run / LOCK_NAME).unlink()
    os.mkfifo(run / LOCK_NAME)
    assert not is_held(run)
    with pytest.raises(UserError, match="no plain file"):
        take_lock(run)


@pytest.mark.parametrize("name", ["sums", "sums/best/adapter", "checkpoints", "metrics.jsonl", "wandb", JOURNAL_NAME])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_in_the_place_of_what_a_run_makes_is_refused(run, name, overwrite):
    if (run / name).is_dir():
        (run / name).rename(run.parent / "aside")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(run.parent / "theirs")
    with pytest.raises(UserError, match=rf"run/{name}: is a link"):
        Journal.open(run, overwrite=overwrite, **RUN)


def test_a_folder_of_more_than_a_run_makes_is_not_looked_through_to_its_end(run, monkeypatch):
    monkeypatch.setattr(run_folder, "MOST_ENTRIES", 10)
    for name in range(5):
        (run / "sums" / f"trial-{name}").mkdir(parents=True)
        (run / "sums" / f"trial-{name}" / "adapter").touch()
    (run / "sums" / "best").rmdir()
    refuse_links(run, ["sums"])
    (run / "sums" / "more").touch()
    with pytest.raises(UserError, match="holds more than 10 files and folders, expected a run's own"):
        refuse_links(run, ["sums"])


def test_a_journal_is_not_written_under_two_names(run):
    os.link(run / JOURNAL_NAME, run.parent / "copy")
    with pytest.raises(UserError, match=rf"{JOURNAL_NAME}: has another name elsewhere"):
        Journal.open(run, **RUN)
    Journal.read(run).close()


def test_links_of_a_tracker_and_of_others_stay(run):
    (run / "wandb").mkdir()
    for place in ("wandb/latest-run", "mine"):
        (run / place).symlink_to(run.parent / "theirs")
    Journal.open(run, **RUN).close()
    Journal.open(run, overwrite=True, **RUN).close()
    assert not (run / "wandb").exists() and (run / "mine").is_symlink()


@pytest.mark.parametrize("beside", ["", "-wal", "-shm"])
def test_a_journal_that_is_a_link_is_not_read(run, beside):
    other = run.parent / "other"
    Journal.open(other, **RUN).close()
    (run / f"{JOURNAL_NAME}{beside}").unlink(missing_ok=True)
    (run / f"{JOURNAL_NAME}{beside}").symlink_to(other / JOURNAL_NAME)
    with pytest.raises(UserError, match=f"{JOURNAL_NAME}{beside}: is a link"):
        Journal.read(run)


def test_a_checkpoint_is_not_read_through_a_link(run):
    with Journal.open(run, **RUN) as journal:
        (run / "checkpoints" / "1").mkdir(parents=True)
        (run / "checkpoints" / "1" / "file").write_text("theirs")
        journal.commit_checkpoint(1, {}, ["checkpoints/1"])
        (run / "checkpoints" / "1" / "file").unlink()
        (run / "checkpoints" / "1" / "file").symlink_to(run.parent / "theirs" / "file")
        with pytest.raises(UserError, match="checkpoints/1/file: is a link"):
            journal.last_checkpoint()


def test_a_run_whose_folder_was_exchanged_writes_and_removes_nothing_in_the_other(run):
    other = run.parent / "other"
    with Journal.open(run, **RUN) as journal:
        Journal.open(other, **RUN).close()
        for folder in (run, other):
            (folder / "checkpoints" / "1").mkdir(parents=True)
        journal.commit_checkpoint(1, {}, ["checkpoints/1"])
        journal.commit_checkpoint(2, {}, [])
        run.rename(run.parent / "aside")
        run.symlink_to(other)
        for write in (
            lambda: journal.append(3),
            lambda: journal.prune_checkpoints(1),
            lambda: journal.remove_unnamed("checkpoints"),
        ):
            with pytest.raises(UserError, match="run: another folder is in its place"):
                write()
        run.unlink()
        with pytest.raises(UserError, match="run: another folder is in its place"):
            journal.append(3)
    assert (other / "checkpoints" / "1").is_dir()


def test_a_link_planted_while_a_run_goes_on_is_not_written_through(run):
    with Journal.open(run, **RUN) as journal:
        (run / "metrics.jsonl").symlink_to(run.parent / "theirs" / "file")
        with pytest.raises(UserError, match=r"metrics\.jsonl: is a link"):
            MetricsLog(run, journal).log([Point("sums", 0, 1, 2, 3, "train", 1.0)])
        (run / "checkpoints").symlink_to(run.parent / "theirs")
        with pytest.raises(UserError, match="checkpoints: is a link"):
            folder_in(run, "checkpoints")
