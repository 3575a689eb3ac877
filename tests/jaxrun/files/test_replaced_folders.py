"""A folder is replaced in one piece; what a killed process left is put right, what a living one writes stays."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrun.files.atomic import digest_of, write_atomic
from jaxrun.files.folders import copy_files, put_back, remove_leftovers, replace_folder
from jaxrun.files.temporary import held, temporary_folder
from jaxrun.process.errors import UserError


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_of_a_folder_are_for_those_whom_the_mask_lets_however_they_were_made(tmp_path, mask):
    before = os.umask(mask)
    try:
        with replace_folder(tmp_path / "f") as folder:
            (folder / "sub").mkdir()
            for path in (folder / "weights", folder / "sub" / "weights"):
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            (folder / "usual").touch()
            (folder / "program").touch(mode=0o700)
            (folder / "link").symlink_to("usual")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "f").rglob("*") if path.is_file() and not path.is_symlink()]
    modes = {path.name: path.stat().st_mode & 0o777 for path in files}
    usual = 0o666 & ~mask
    assert modes == {"weights": usual, "usual": usual, "program": 0o700 | usual}
    assert (tmp_path / "f" / "sub" / "weights").stat().st_mode & 0o777 == usual


def test_replace_folder_swaps_whole_folders(tmp_path):
    target = tmp_path / "best"
    for content in ("one", "two"):
        with replace_folder(target) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "a").write_text(content)
        assert (target / "deep" / "a").read_text() == content
    with pytest.raises(ZeroDivisionError), replace_folder(target) as folder:
        (folder / "b").write_text("never")
        raise ZeroDivisionError
    assert (target / "deep" / "a").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_leftovers_go_and_a_folder_moved_aside_comes_back(tmp_path):
    (tmp_path / ".tmp-best.partial").mkdir()
    (tmp_path / ".tmp-file.1.partial").write_text("torn")
    (tmp_path / ".old-best.replaced").mkdir()
    (tmp_path / ".old-best.replaced" / "a").write_text("kept")
    (tmp_path / ".old-last.replaced").mkdir()
    (tmp_path / "last").mkdir()
    for name in ("mine", ".tmp-mine", ".old-mine", ".partial"):
        (tmp_path / name).write_text("mine")
    assert remove_leftovers(tmp_path) == [".old-last.replaced", ".tmp-best.partial", ".tmp-file.1.partial"]
    assert {path.name for path in tmp_path.iterdir()} == {"best", "last", "mine", ".tmp-mine", ".old-mine", ".partial"}
    assert (tmp_path / "best" / "a").read_text() == "kept"


def test_killed_at_every_change_the_next_call_finds_the_old_or_the_new_and_leaves_nothing(tmp_path):
    script = Path(__file__).parent / "folder_killer.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "f")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kills = json.loads(done.stdout)
    assert kills["export"] >= 8 and kills["replace by two moves"] > kills["write"] >= 2


@pytest.fixture
def two_moves(monkeypatch):
    """A system that cannot swap two folders in one step."""
    monkeypatch.setattr("jaxrun.files.folders.exchange", lambda one, other: False)


def test_what_a_living_process_writes_stays(tmp_path):
    target = tmp_path / "best"
    with replace_folder(target) as one:
        (one / "a").write_text("one")
        assert remove_leftovers(tmp_path) == []
        with replace_folder(target) as other:
            (other / "a").write_text("other")
            assert one != other
        write_atomic(tmp_path / "file", "whole")
        assert (target / "a").read_text() == "other"
    assert (target / "a").read_text() == "one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "file"]


def test_a_folder_that_a_living_process_moved_aside_is_left_to_it(tmp_path):
    (tmp_path / ".old-best.replaced").mkdir()
    (tmp_path / ".old-best.replaced" / "a").write_text("old")
    with held(tmp_path / ".old-best.replaced"):
        put_back(tmp_path / "best")
        assert remove_leftovers(tmp_path) == []
        assert not (tmp_path / "best").exists()
    put_back(tmp_path / "best")
    assert (tmp_path / "best" / "a").read_text() == "old"


def test_without_locks_nothing_is_taken_for_left_over(tmp_path, monkeypatch):
    def no_locks(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".tmp-best.partial").mkdir()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert remove_leftovers(tmp_path) == []
    with replace_folder(tmp_path / "best") as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "best" / "a").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-best.partial", "best"]


@pytest.mark.parametrize("moves", ["in one step", "two_moves"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_or_link_in_the_place_of_a_folder_is_replaced_and_nothing_behind_it(tmp_path, request, moves, kind):
    if moves == "two_moves":
        request.getfixturevalue(moves)
    (tmp_path / "behind").mkdir()
    (tmp_path / "behind" / "a").write_text("mine")
    target = tmp_path / "plots"
    target.symlink_to("behind") if kind == "link" else target.write_text("a file")
    with replace_folder(target) as folder:
        (folder / "a").write_text("new")
    assert not target.is_symlink() and (target / "a").read_text() == "new"
    assert (tmp_path / "behind" / "a").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["behind", "plots"]


def test_a_name_of_as_many_bytes_as_there_may_be_is_replaced(tmp_path):
    for name in ("n" * 250, "é" * 125):
        for word in ("one", "two"):
            with replace_folder(tmp_path / name) as folder:
                (folder / "a").write_text(word)
            write_atomic(tmp_path / name / "b", word)
        assert (tmp_path / name / "a").read_text() == "two"


def test_copies_follow_no_link(tmp_path):
    source, secret = tmp_path / "source", tmp_path / "secret"
    (source / "deep").mkdir(parents=True)
    secret.mkdir()
    (secret / "key").write_text("secret")
    (source / "a").write_text("a")
    (source / "deep" / "b").write_text("b")
    for number, make in enumerate(
        (
            lambda: None,
            lambda: (source / "key").symlink_to(secret / "key"),
            lambda: (source / "deep" / "all").symlink_to(secret),
            lambda: os.mkfifo(source / "pipe"),
        )
    ):
        make()
        to = tmp_path / f"to{number}"
        to.mkdir()
        if not number:
            copy_files(source, to)
            assert digest_of(to) == digest_of(source)
            continue
        with pytest.raises(UserError, match=r"(key: is a link|all: is a link|pipe: is no plain file), expected files"):
            copy_files(source, to)
        assert not list(to.rglob("*secret*")) and "secret" not in [p.read_text() for p in to.rglob("*") if p.is_file()]
        for made in (source / "key", source / "deep" / "all", source / "pipe"):
            made.unlink(missing_ok=True)


def test_a_folder_in_which_nothing_can_be_made_is_an_error_at_once():
    with pytest.raises(FileNotFoundError), temporary_folder(Path("/proc/x")):
        pass
