"""Nobody notices a hostile tenant of a queue, in short; scripts/attack/attack_queue.py does the whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


def test_nobody_else_notices_a_hostile_tenant():
    command = [sys.executable, str(ROOT / "scripts" / "attack" / "attack_queue.py"), "--short"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "nobody else noticed" in done.stdout
