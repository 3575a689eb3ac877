"""A queue under load loses nothing and runs nothing to its end twice, whoever is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


def test_tasks_come_to_their_end_once_while_workers_and_the_orchestrator_are_killed(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "scripts" / "stress" / "load_queue.py"),
        "--short",
        "--out",
        str(tmp_path / "load"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "'worker':" in done.stdout and "'orchestrator':" in done.stdout
    assert "nothing was lost, nothing ran to its end twice" in done.stdout
