"""Code of the user's scores answers, and whatever is wrong with it is one line."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from stopping import AskedAfter

from altojax.run.loop.scoring import ByCommand, ByPython, TrialAnswer, imported
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import Stopped

ANSWERS = [TrialAnswer("2+2=", "4", "4"), TrialAnswer("2+3=", "ä\nb", "5"), TrialAnswer("1+1=", "", "2")]
HALF = """
import json, sys
for row in map(json.loads, sys.stdin):
    print(1 if row["answer"] == row["reference"] else 0.5)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "while 1: pass"])
open(sys.argv[1], "w").write(str(child.pid))
print("1\\n1\\n1")
"""


def command(code: str, timeout_s: float = 60) -> ByCommand:
    return ByCommand([sys.executable, "-c", code], timeout_s)


def function(call, timeout_s: float = 60) -> ByPython:
    return ByPython(call, "metric.python: m:f", timeout_s)


def test_a_function_scores_each_answer_and_numbers_of_any_kind_are_taken():
    scores = iter([True, np.float32(0.5), 0])
    seen = []

    def score(prompt, answer, reference):
        seen.append((prompt, answer, reference))
        return next(scores)

    assert function(score)(ANSWERS) == [1.0, 0.5, 0.0]
    assert seen == [tuple(one) for one in ANSWERS]


def test_a_command_reads_a_line_for_each_answer_and_prints_its_score():
    assert command(HALF)(ANSWERS) == [1.0, 0.5, 0.5]


def raises(*_):
    raise KeyError("no\nsuch")


def leaves(*_):
    sys.exit(3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (raises, r"raised KeyError: 'no\\nsuch'; it was given the answer '4' and the reference '4'"),
        (leaves, "raised SystemExit: 3"),
        (lambda *_: 1.5, r"returned 1.5, expected a number from 0 to 1"),
        (lambda *_: float("nan"), "returned nan, expected a number from 0 to 1"),
        (lambda *_: "0.5", "returned '0.5', expected a number"),
        (lambda *_: None, "returned None, expected a number"),
        (lambda one: 1.0, "raised TypeError"),
    ],
)
def test_what_is_wrong_with_a_function_is_one_line(call, said):
    with pytest.raises(UserError, match=said) as refused:
        function(call)(ANSWERS)
    assert "\n" not in str(refused.value) and str(refused.value).startswith("metric.python: m:f ")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('out of\\n\\npaper')", "ended with code 1: paper$"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "was ended by signal 15$"),
        ("print(1)", "printed 1 lines for 3 answers, expected a number from 0 to 1 for each"),
        ("print(1); print('one'); print(0)", "printed 'one' in line 2, expected a number from 0 to 1"),
        ("print(1); print(0); print('inf')", "printed 'inf' in line 3"),
        ("print('9' * 10**6)", "printed 1 lines for 3 answers"),
    ],
)
def test_what_is_wrong_with_a_command_is_one_line(code, said):
    with pytest.raises(UserError, match=said) as refused:
        command(code)(ANSWERS)
    assert "\n" not in str(refused.value) and str(refused.value).startswith("metric.command: ")


def test_a_program_that_is_not_there_is_said():
    with pytest.raises(UserError, match=r"metric.command: /no/such --x: No such file.*expected a program that can be"):
        ByCommand(["/no/such", "--x"], 1)(ANSWERS)


@pytest.mark.parametrize(
    "grade", [function(lambda *_: time.sleep(2) or 1.0, 0.2), command("input(); input()\nwhile 1: pass", 0.2)]
)
def test_what_takes_too_long_is_ended(grade):
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"has not scored 3 answers within 0.2 s, expected a larger metric.timeout_s"):
        grade(ANSWERS)
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("grade", [function(lambda *_: time.sleep(2) or 1.0), command("while 1: pass")])
def test_who_asks_it_to_stop_does_not_wait_for_it(grade):
    with pytest.raises(Stopped):
        grade(ANSWERS, AskedAfter(1))


def test_what_a_command_started_ends_with_it(tmp_path):
    grade = ByCommand([sys.executable, "-c", PARENT, str(tmp_path / "pid")], 60)
    assert grade(ANSWERS) == [1.0] * 3
    state = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    until = time.monotonic() + 60
    while state.exists() and " Z " not in state.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_function_is_found_in_the_current_folder_behind_what_is_installed(tmp_path, monkeypatch):
    (tmp_path / "my_scores_here.py").write_text("class Close:\n    def score(p, a, r): return 0.25\nvalue = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert imported("my_scores_here:Close.score")("", "", "") == 0.25
    for path, said in {
        "my_scores_here:other": "has no function 'other'",
        "my_scores_here:value": "has no function 'value'",
        "no_such_module:f": "module 'no_such_module' cannot be imported: ModuleNotFoundError",
    }.items():
        with pytest.raises(UserError, match=said):
            imported(path)
