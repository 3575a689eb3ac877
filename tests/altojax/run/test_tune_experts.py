"""A mixture of experts is tuned as any base: from a config, with adapters on experts, over a mesh, and goes on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import pytest
from adapters import random_base
from safetensors.numpy import load_file

from altojax.cli import main
from altojax.report.run_record import read_record
from jaxlm.families.registry import random_config
from jaxlm.files.hf import save_model
from jaxrun.files.atomic import digest_of
from jaxrun.store.journal import Journal

pytestmark = pytest.mark.slow

LOSS_BOUND = 2e-6  # sums of float32 in another order
CONFIG = """
output_dir: {folder}/run
model: {{model_name_or_path: {folder}/base, dtype: float32, remat: none, scan_layers: true}}
slots: 2
eval_samples: 0.5
checkpoint_samples: 0.1
early_exit: {{preset: none}}
search:
  lora_rank: 2
  learning_rate: 1.0e-2
  batch_size: 2
  train_samples: 8
  target_modules: [o_proj]
  target_parameters: [[experts.gate_up_proj, experts.down_proj], [layers.1.mlp.experts.down_proj], []]
tasks:
  - name: sums
    data: {{train: {folder}/rows.jsonl, validation_samples: 6, max_length: 32}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds a base of gpt-oss with a tokenizer, rows and a config; the runs of all tests."""
    folder = tmp_path_factory.mktemp("experts")
    config = replace(
        random_config("gpt_oss"), vocab_size=264, num_layers=2, sliding_pattern=(True, False), swiglu_limit=1.0
    )
    save_model(folder / "base", config, random_base(config), dtype=jnp.float32)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path("configs/tiny") / name, folder / "base")
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def losses(run: Path) -> list[float]:
    with Journal.read(run) as journal:
        record = read_record(journal)
    assert record.finished
    return [trial.best_loss for trial in record.trials]


def adapters(run: Path) -> dict[str, str]:
    return {path.parent.name: digest_of(path) for path in run.glob("sums/trial-*/adapter_model.safetensors")}


def test_a_run_that_was_stopped_resumes_to_the_same_bits(folder, tune, whole):
    assert tune("stopped", looks=5) == 130
    assert tune("stopped") == 0
    assert adapters(folder / "stopped") == adapters(whole) and len(adapters(whole)) == 3
    names = [load_file(path).keys() for path in sorted(whole.glob("sums/trial-*/adapter_model.safetensors"))]
    assert [sum("experts" in name for name in one) for one in names] == [8, 2, 0]


def test_over_a_mesh_losses_are_those_of_one_device(folder, whole, few_shapes):
    words = ["tune", str(folder / "run.yaml"), f"output_dir={folder}/mesh", "mesh={adapter: 2}"]
    assert main(words) == 0
    assert losses(folder / "mesh") == pytest.approx(losses(whole), abs=LOSS_BOUND)


def test_dropout_with_parameters_is_refused_in_one_line(folder, capsys):
    assert main(["tune", str(folder / "run.yaml"), f"output_dir={folder}/no", "search.lora_dropout=0.1"]) == 2
    assert "lora_dropout: given 0.1 with target_parameters, expected 0" in capsys.readouterr().err
