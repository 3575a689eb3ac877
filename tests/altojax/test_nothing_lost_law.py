"""The nothing-lost law: kill it at any instant; the same command goes on to the same decisions and the same bits."""

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.files import digest_of
from harness.journal import Journal

KILLS = 20
ROOT = Path(__file__).parent.parent.parent

CONFIG = """
output_dir: {run}
model: {{model_name_or_path: configs/tiny, random_init: true, dtype: float32}}
slots: 3
eval_samples: 0.2
checkpoint_samples: 0.04
search:
  configurations:
    - {{lora_rank: 4, batch_size: 2, learning_rate: 3.0e-3, lora_dropout: 0.1}}
    - {{lora_rank: 2, batch_size: 2, learning_rate: 1.0e-2, weight_decay: 0.1}}
    - {{lora_rank: 8, batch_size: 1, learning_rate: 3.0e-3, target_modules: [q_proj, v_proj]}}
    - {{lora_rank: 4, batch_size: 1, learning_rate: 1.0e-2, gradient_accumulation_steps: 2}}
    - {{lora_rank: 4, batch_size: 2, learning_rate: 1.0e-4, lora_dropout: 0.3}}
  train_samples: 60
tasks:
  - {{name: sums, data: {{train: {data}, validation_samples: 6, max_length: 32}}}}
"""


def write_inputs(folder: Path, run: str) -> Path:
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = folder / f"{run}.yaml"
    config.write_text(CONFIG.format(run=folder / run, data=folder / "sums.jsonl"))
    return config


def tune(config: Path, *more: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    command = [sys.executable, "-m", "altojax", "tune", str(config), *more]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def checkpoints(run: Path) -> int:
    """How many checkpoints the run has committed so far."""
    if not (run / "journal.db").exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{run / 'journal.db'}?mode=ro", uri=True)) as database:
        try:
            return database.execute("SELECT coalesce(max(id), 0) FROM checkpoints").fetchone()[0]
        except sqlite3.OperationalError:
            return 0


def outcome(run: Path) -> tuple[list[str], dict[str, str]]:
    """The decision log and the digest of every adapter's weights."""
    with Journal.read(run) as journal:
        log = journal.decision_log()
    weights = {
        str(path.relative_to(run)): digest_of(path) for path in sorted(run.glob("*/*/adapter_model.safetensors"))
    }
    return log, weights


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    process = tune(write_inputs(folder, "run"))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    log, weights = outcome(folder / "run")
    assert len(weights) == 6
    return log, weights


def test_killed_at_twenty_random_instants_it_ends_with_the_same_bits(tmp_path, uninterrupted):
    chance = random.Random(7)
    kills = in_the_middle = 0
    while kills < KILLS:
        run = tmp_path / f"run{kills}"
        config = write_inputs(tmp_path, run.name)
        while True:
            before = checkpoints(run)
            process = tune(config)
            if kills < KILLS:
                anywhere = time.monotonic() + chance.uniform(0.5, 8.0)
                further = chance.random() < 0.8
                while process.poll() is None and (
                    checkpoints(run) <= before if further else time.monotonic() < anywhere
                ):
                    time.sleep(0.01)
                time.sleep(chance.uniform(0.0, 0.5))
                process.send_signal(signal.SIGKILL)
            _, errors = process.communicate(timeout=300)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, errors
            kills += 1
            in_the_middle += checkpoints(run) > before
        assert outcome(run) == uninterrupted
    assert in_the_middle >= KILLS // 2


def test_ctrl_c_parks_says_how_to_go_on_and_the_same_command_does(tmp_path, uninterrupted):
    config = write_inputs(tmp_path, "run")
    process = tune(config)
    journal = tmp_path / "run" / "journal.db"
    for _ in range(600):
        if journal.exists():
            break
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode in (0, 130)
    if process.returncode == 130:
        assert "run the same command again" in output
    again = tune(config)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert outcome(tmp_path / "run") == uninterrupted


def test_another_config_in_the_same_folder_is_refused_and_changes_nothing(tmp_path):
    config = write_inputs(tmp_path, "run")
    first = tune(config)
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
    before = outcome(tmp_path / "run")
    other = tune(config, "seed=1")
    _, errors = other.communicate(timeout=120)
    assert other.returncode == 2
    assert len(errors.strip().splitlines()) == 1
    assert "seed" in errors
    assert "overwrite=true" in errors
    assert outcome(tmp_path / "run") == before


def test_a_corrupt_checkpoint_is_named_in_one_line(tmp_path):
    config = write_inputs(tmp_path, "run")
    process = tune(config)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    victim = next(path for path in sorted((tmp_path / "run" / "checkpoints").rglob("*")) if path.is_file())
    victim.write_bytes(b"damaged")
    again = tune(config)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 2
    assert len(errors.strip().splitlines()) == 1
    assert victim.name in errors
