"""The nothing-lost law: stopped or out of disk, the same command resumes to the same decisions and the same bits."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from orders import wait_for

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


# As `altojax tune`, which draws no report; the first number is the most bytes that a file may have.
PROGRAM = """
import resource, sys
from altojax.device import executor
from altojax.report import write_report
from altojax.cli import main
from jaxrun.process.startup import expect_interrupt, run

if most := int(sys.argv.pop(1)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
write_report.write_report = lambda run_dir: []
executor.compile_tokens = lambda prices: 10**9  # few shapes
expect_interrupt("altojax")
sys.exit(run("altojax", main))
"""
NO_MORE_PROGRAMS = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000"}
"""Where writing fails, compiled programs are read from the cache alone."""


@pytest.fixture(scope="module")
def tune(forks):
    """Starts `altojax tune` in a process of its own."""

    def start(config, *, most=0, **environment):
        words = [most, "tune", config, f"output_dir={config.parent}/run"]
        return forks.begin(PROGRAM, [words], [ROOT], {"JAX_NUM_CPU_DEVICES": "1", **environment})

    return start


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tune):
    """The folder of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    [ended] = tune(write_inputs(folder, "run")).ended()
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.fixture(scope="module")
def uninterrupted(outcome, whole):
    made = outcome(whole)
    assert len(made["adapters"]) == 6
    return made


def test_after_a_full_disk_ctrl_c_and_damage_which_are_told_the_same_command_goes_on_to_the_same_bits(
    tmp_path, outcome, tune, uninterrupted
):
    config = write_inputs(tmp_path, "run")
    [full] = tune(config, most=100 * 1024, **NO_MORE_PROGRAMS).ended()
    assert full.code == 2, full.err
    assert len(full.err.strip().splitlines()) == 1
    # The journal or a checkpoint, whichever is first.
    assert "full or failing disk?" in full.err or "expected room to write" in full.err

    begun = tune(config)
    wait_for(lambda: "rung" in begun.said(), seconds=600)
    os.kill(begun.pids[0], signal.SIGINT)
    [stopped] = begun.ended()
    assert stopped.code == 130, stopped.err
    assert "the same command resumes it" in stopped.out
    checkpoints = tmp_path / "run" / "checkpoints"
    victim = next(path for path in sorted(checkpoints.rglob("*")) if path.is_file())
    whole_bytes = victim.read_bytes()
    victim.write_bytes(b"damaged")
    [refused] = tune(config).ended()
    assert refused.code == 2
    assert len(refused.err.strip().splitlines()) == 1
    assert victim.name in refused.err
    victim.write_bytes(whole_bytes)
    [again] = tune(config).ended()
    assert again.code == 0, again.err
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


def test_adapters_are_written_once_and_one_that_is_damaged_is_named_in_one_line(copy, capsys):
    run = copy.parent / "run"
    assert not list((run / "checkpoints").iterdir()), "the last checkpoint names the adapters' own folders"
    victim = min(run.glob("sums/trial-*/adapter_model.safetensors"))
    victim.write_bytes(b"damaged")
    assert main(["tune", str(copy), "mesh={adapter: 1}"]) == 2
    errors = capsys.readouterr().err
    assert len(errors.strip().splitlines()) == 1
    assert str(victim) in errors


def test_an_adapter_that_was_removed_is_not_missed_and_the_best_comes_of_its_trial(copy, uninterrupted, outcome):
    run = copy.parent / "run"
    best = (run / "sums/best/adapter_model.safetensors").read_bytes()
    of_it = [one.parent for one in run.glob("sums/trial-*/adapter_model.safetensors") if one.read_bytes() == best]
    shutil.rmtree(run / "sums/best")
    shutil.rmtree(next(one for one in sorted(run.glob("sums/trial-*")) if one not in of_it))
    assert main(["tune", str(copy)]) == 0
    assert (run / "sums/best/adapter_model.safetensors").read_bytes() == best
    shutil.rmtree(of_it[0])
    assert main(["tune", str(copy)]) == 0
    assert (run / "sums/best/adapter_model.safetensors").read_bytes() == best
