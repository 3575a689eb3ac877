"""A file is whole or absent; nothing escapes its root."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrun.files.atomic import check_writable, digest_of, inside, user_errors, write_atomic
from jaxrun.process.errors import UserError


def test_write_atomic_replaces_and_leaves_nothing_behind(tmp_path):
    write_atomic(tmp_path / "a", "one")
    write_atomic(tmp_path / "a", b"tw\xff")
    assert (tmp_path / "a").read_bytes() == b"tw\xff"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_secret_is_at_no_moment_for_others_to_read(tmp_path, monkeypatch):
    modes, whole = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda one: (modes.append(os.fstat(one).st_mode), whole(one)))
    write_atomic(tmp_path / "a", "old")
    write_atomic(tmp_path / "a", "token", mode=0o600)
    assert [mode & 0o077 for mode in modes if stat.S_ISREG(mode)][1] == 0
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left on the device"):
        write_atomic(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_beyond_the_size_limit_is_a_line_not_a_traceback(tmp_path):
    script = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from jaxrun.files.atomic import write_atomic\n"
        "from jaxrun.process.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomic(sys.argv[1], b'x' * 5000)\n"
        "except UserError as error: print(error)\n"
    )
    target = tmp_path / "a"
    target.write_text("old")
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script, str(target), str(root)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{target}: file too large for this file system or limit, expected room to write\n"
    assert target.read_text() == "old"


@settings(deadline=None)
@given(
    st.dictionaries(st.text("ab.", min_size=1).filter(lambda name: name.strip(".")), st.binary(max_size=8), max_size=4)
)
def test_the_digest_of_a_folder_tells_every_change(tmp_path_factory, files):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for name, content in files.items():
        (one / name).write_bytes(content)
    for name, content in reversed(files.items()):
        (two / name).write_bytes(content)
    assert digest_of(one) == digest_of(two)
    (two / "extra").mkdir()
    assert digest_of(one) != digest_of(two)
    if files:
        (two / "extra").rmdir()
        changed = two / next(iter(files))
        changed.write_bytes(changed.read_bytes() + b"!")
        assert digest_of(one) != digest_of(two)
        assert digest_of(one / changed.name) != digest_of(changed)


@pytest.mark.parametrize("escape", ["..", "a/../../b", "/etc/passwd", "link/x"])
def test_nothing_escapes_its_root(tmp_path, escape):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    assert inside(root, "a/../b") == root / "b"
    with pytest.raises(UserError, match="leads outside"):
        inside(root, escape)


def test_folders_that_cannot_be_written_are_one_line(tmp_path):
    check_writable(tmp_path / "deep" / "er")
    assert list((tmp_path / "deep" / "er").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="part of the path is a file, expected folders"):
        check_writable(tmp_path / "file" / "x")
    with pytest.raises(UserError, match="is a file, expected a folder"):
        check_writable(tmp_path / "file")
    with pytest.raises(UserError, match="/proc/nothing"):
        check_writable("/proc/nothing")


def test_only_errors_a_user_can_cause_are_translated(tmp_path):
    with pytest.raises(FileNotFoundError), user_errors("x"):
        (tmp_path / "gone").read_text()
    for code in (errno.EACCES, errno.EROFS, errno.EDQUOT):
        with pytest.raises(UserError, match=r"^x: .*, expected"), user_errors("x"):
            raise OSError(code, "no")
