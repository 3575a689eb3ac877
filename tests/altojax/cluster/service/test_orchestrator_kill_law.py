"""Kill the orchestrator at every event of a run: whoever follows decides the same, to the last byte of the log."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KILLER = Path(__file__).parent / "orchestrator_killer.py"
TESTS = KILLER.parents[3]


def test_killed_at_every_commit_the_decision_log_is_the_same(in_memory):
    one_thread = {
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS / "helpers"))),
    }
    command = [sys.executable, str(KILLER), str(in_memory)]
    done = subprocess.run(
        command, env={**os.environ, **one_thread}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["kills"] >= 3 * told["commits"] - 2
    kinds = {json.loads(record)["kind"] for record in told["log"]}
    assert kinds >= {
        "submitted",
        "asked",
        "failed",
        "halted",
        "ended",
        "node",
        "plan",
        "merge",
        "start",
        "stop",
        "give_up",
    }
