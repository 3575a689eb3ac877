"""A confined process ends by itself what takes too long, and nothing that it does reaches this one."""

import os
import time
from pathlib import Path

import pytest

import jaxrun
from jaxrun.untrusted.confined import Confined, Exceeded


@pytest.fixture
def confined(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    made = Confined("confined_answers:answer", limit_s=0.5)
    yield made
    made.close()


def test_answers_are_those_of_one_process_and_any_text_passes(confined):
    first, second = (confined.ask({"do": "echo", "what": what}) for what in ("a\nb\ud800\x00", ["c", None, 1.5]))
    assert first["said"] == "a\nb\ud800\x00" and second["said"] == ["c", None, 1.5]
    assert first["process"] == second["process"] != os.getpid()


@pytest.mark.parametrize(
    ("do", "why"),
    [
        ("loop", r"more than 0\.5 s"),
        ("compute", r"more than 0\.5 s"),
        ("fill", "more than 1 GiB of memory"),
        ("shout", r"more than (64 MiB|0\.5 s)"),
        ("fail", r"fails \(ZeroDivisionError: no\)"),
        ("die", "more memory than there is"),
    ],
)
def test_what_exceeds_its_limits_is_said_and_the_next_request_is_answered(confined, do, why):
    begun = time.monotonic()
    with pytest.raises(Exceeded, match=why):
        confined.ask({"do": do})
    assert time.monotonic() - begun < 30
    assert confined.ask({"do": "echo", "what": "on"})["said"] == "on"


def test_it_runs_the_code_that_this_process_runs_and_none_from_the_working_folder(confined, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert confined.ask({"do": "where"})["said"] == jaxrun.__path__[0]


def test_it_writes_no_file(confined, tmp_path):
    with pytest.raises(Exceeded):
        confined.ask({"do": "write", "path": str(tmp_path / "file")})
    assert not (tmp_path / "file").exists() or not (tmp_path / "file").stat().st_size


def test_it_ends_with_the_process_that_asks_it(confined):
    process = confined.ask({"do": "echo", "what": ""})["process"]
    confined.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
