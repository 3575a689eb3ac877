"""The nothing-lost law: stopped or out of disk, the same command resumes to the same decisions and the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from altojax.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
CONFIG = """
output_dir: {run}
model: {{model_name_or_path: {base}, random_init: true, dtype: float32}}
slots: 3
eval_samples: 0.2
early_exit: {{preset: eager, underperforming: {{rank_by: average}}}}
result: average
checkpoint_samples: 0.04
search:
  configurations:
    - {{lora_rank: 4, batch_size: 2, learning_rate: 3.0e-3, lora_dropout: 0.1}}
    - {{lora_rank: 2, batch_size: 2, learning_rate: 1.0e-2, weight_decay: 0.1}}
    - {{lora_rank: 8, batch_size: 1, learning_rate: 3.0e-3, target_modules: [q_proj, v_proj]}}
    - {{lora_rank: 4, batch_size: 1, learning_rate: 1.0e-2, gradient_accumulation_steps: 2}}
    - {{lora_rank: 4, batch_size: 2, learning_rate: 1.0e-4, lora_dropout: 0.3}}
  target_modules: [q_proj, down_proj]
  train_samples: 60
tasks:
  - {{name: sums, data: {{train: {data}, validation_samples: 6, max_length: 32, chat_template: false}}}}
"""


def write_inputs(folder: Path, run: str) -> Path:
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = folder / f"{run}.yaml"
    config.write_text(CONFIG.format(base=ROOT / "configs" / "tiny", run=folder / run, data=folder / "sums.jsonl"))
    return config


@pytest.fixture(scope="module")
def outcome(script):
    return script("kill_runs").outcome


@pytest.fixture(scope="module")
def tune():
    def start(config, *overrides):
        command = [sys.executable, "-m", "altojax", "tune", str(config), *overrides]
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return start


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tune):
    """The folder of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    process = tune(write_inputs(folder, "run"))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder / "run"


@pytest.fixture(scope="module")
def uninterrupted(outcome, whole):
    made = outcome(whole)
    assert len(made["adapters"]) == 6
    return made


def test_ctrl_c_parks_says_how_to_go_on_and_the_same_command_does(tmp_path, outcome, tune, uninterrupted):
    config = write_inputs(tmp_path, "run")
    process = tune(config)
    journal = tmp_path / "run" / "journal.db"
    while not journal.exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode in (0, 130)
    if process.returncode == 130:
        assert "the same command resumes it" in output
    again = tune(config)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert outcome(tmp_path / "run") == uninterrupted


@pytest.fixture
def copy(tmp_path, whole):
    """The config of a copy of that run, which a test may damage."""
    shutil.copytree(whole, tmp_path / "run")
    return write_inputs(tmp_path, "run")


def test_another_config_in_the_same_folder_is_refused_and_changes_nothing(copy, outcome, uninterrupted, capsys):
    assert main(["tune", str(copy), "seed=1"]) == 2
    errors = capsys.readouterr().err
    assert len(errors.strip().splitlines()) == 1
    assert "seed" in errors
    assert "overwrite=true" in errors
    assert outcome(copy.parent / "run") == uninterrupted


def test_a_corrupt_checkpoint_is_named_in_one_line(copy, capsys):
    checkpoints = copy.parent / "run" / "checkpoints"
    victim = next(path for path in sorted(checkpoints.rglob("*")) if path.is_file())
    victim.write_bytes(b"damaged")
    assert main(["tune", str(copy), "mesh={adapter: 1}"]) == 2
    errors = capsys.readouterr().err
    assert len(errors.strip().splitlines()) == 1
    assert victim.name in errors


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, outcome, tune, uninterrupted):
    config = write_inputs(tmp_path, "run")
    command = f'ulimit -f 100; exec "{sys.executable}" -m altojax tune "{config}"'
    without_cache = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    full = subprocess.run(
        ["bash", "-c", command], env=without_cache, capture_output=True, text=True, timeout=300, check=False
    )
    assert full.returncode == 2, full.stderr
    assert len(full.stderr.strip().splitlines()) == 1
    # The journal or a checkpoint, whichever is first.
    assert "full or failing disk?" in full.stderr or "expected room to write" in full.stderr
    again = tune(config)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert outcome(tmp_path / "run") == uninterrupted
