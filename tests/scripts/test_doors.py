"""scripts/tune.py and scripts/twist.py are `altojax tune` and `twistjax train` with flags."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        (
            "tune.py",
            ["--config", "configs/quickstart.yaml", "--output-dir", "runs/x", "--search.lora-rank", "8,0"],
            "altojax: error: command line: search.lora_rank",
        ),
        (
            "twist.py",
            ["--config", "configs/twistjax/quickstart.yaml", "--subnetworks.kappa", "0.5,2"],
            "twistjax: error: command line: subnetworks.kappa",
        ),
    ],
)
def test_flags_of_a_door_reach_the_config(script, words, said):
    command = [sys.executable, str(ROOT / "scripts" / script), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
