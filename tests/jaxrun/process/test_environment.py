"""Compiled programs are kept in a folder of the user's own, of a bounded size, unless the user says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrun.process.environment import CACHE, CACHE_LEAST, CACHE_SIZE, KEPT_BYTES, KEPT_S, own_cache, set_environment

ROOT = Path(__file__).parents[3]
PROGRAM = """
from jaxrun.process.environment import set_environment
set_environment("altojax")
import jax
jax.jit(lambda x: x + 1)(1.0)
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without a cache, and an environment that says nothing."""
    for name in (CACHE, CACHE_SIZE, CACHE_LEAST, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return tmp_path


def mode(path):
    return path.stat().st_mode & 0o777


def test_programs_are_kept_in_a_closed_folder_of_a_bounded_size(home):
    set_environment("altojax")
    folder = home / ".cache" / "altojax" / "xla"
    assert os.environ[CACHE] == str(folder) and mode(folder) == 0o700
    assert os.environ[CACHE_SIZE] == str(KEPT_BYTES) and os.environ[CACHE_LEAST] == str(KEPT_S)


def test_the_folder_is_where_xdg_says(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    assert own_cache("twistjax") == home / "elsewhere" / "twistjax" / "xla"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert own_cache("twistjax") == home / ".cache" / "twistjax" / "xla", "the standard ignores a relative one"


@pytest.mark.parametrize("folder", ["/of/the/user", ""])
def test_what_the_user_says_stands(home, monkeypatch, folder):
    monkeypatch.setenv(CACHE, folder)
    set_environment("altojax")
    assert os.environ[CACHE] == folder and CACHE_SIZE not in os.environ
    assert not (home / ".cache").exists()


def test_a_folder_that_was_open_to_readers_is_closed(home):
    folder = home / ".cache" / "altojax" / "xla"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    assert own_cache("altojax") == folder and mode(folder) == 0o700


@pytest.mark.parametrize("name", ["altojax", "altojax/xla"])
def test_a_folder_that_others_write_is_not_taken(home, name):
    (home / ".cache" / "altojax" / "xla").mkdir(parents=True)
    (home / ".cache" / name).chmod(0o777)
    assert own_cache("altojax") is None


def test_a_link_to_somewhere_else_is_not_taken(home):
    (home / "theirs").mkdir()
    (home / ".cache" / "altojax").mkdir(parents=True)
    (home / ".cache" / "altojax" / "xla").symlink_to(home / "theirs")
    assert own_cache("altojax") is None


def test_a_home_that_takes_no_folder_is_no_error(home):
    (home / ".cache").write_text("a file")
    set_environment("altojax")
    assert CACHE not in os.environ


def test_jax_keeps_and_bounds_what_it_has_compiled_there(home):
    """The bound needs a library that transformers brings along."""
    said = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    subprocess.run(command, env={**os.environ, **said}, check=True)
    kept = [path.name for path in (home / ".cache" / "altojax" / "xla").iterdir()]
    assert any(name.endswith("-cache") for name in kept) and any(name.endswith("-atime") for name in kept)
