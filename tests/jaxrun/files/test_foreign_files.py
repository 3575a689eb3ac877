"""Files of others are read within bounds: no pipe is waited for, no device read to its end."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrun.files.foreign_files import check_regular, read_bytes, read_json
from jaxrun.files.home import from_home
from jaxrun.process.errors import UserError


def test_a_json_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, "é"]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": [1, "é"]}


@given(st.binary(max_size=40))
def test_any_bytes_are_an_object_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "some.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_json(path), dict)
    except UserError as error:
        assert "\n" not in str(error) and str(error).startswith(str(path))


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"{} {}", b"\xff", b""])
def test_what_is_no_object_is_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")


def test_what_has_no_end_is_not_begun(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("/dev/zero")
    for path, kind in ((tmp_path / "pipe", "pipe"), (tmp_path / "socket", "socket"), (tmp_path / "link", "device")):
        with pytest.raises(UserError, match=f"is a {kind}, expected a plain file"):
            check_regular(path)
    listener.close()
    with pytest.raises(UserError, match="is a folder"):
        read_json(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "none")


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path):
    (tmp_path / "large").write_bytes(b" " * 101)
    assert read_bytes(tmp_path / "large", 101) == b" " * 101
    with pytest.raises(UserError, match="has 101 bytes, expected at most 100"):
        read_bytes(tmp_path / "large", 100)
    with pytest.raises(UserError, match="expected at most 100"):
        read_bytes(Path("/proc/self/maps"), 100)  # says that it has no bytes at all


def test_a_home_that_nobody_has_is_one_line():
    assert from_home("~/x") == Path.home() / "x"
    with pytest.raises(UserError, match=r"^~no-such-user/x: no home folder is known"):
        from_home("~no-such-user/x")
