"""Where trials wait at a rung, on the device or on the host, decides nothing and changes no bit."""

import json
from pathlib import Path

import pytest

from jaxrun.files.atomic import digest_of
from jaxrun.store.journal import Journal

pytestmark = pytest.mark.slow

CONFIG = """
output_dir: {folder}/run
model: {{model_name_or_path: configs/tiny, random_init: true, dtype: float32}}
slots: 2
eval_samples: 0.25
checkpoint_samples: 0.1
early_exit: {{preset: none, halving: {{first: 0.25, eta: 2.0}}}}
search:
  learning_rate: [1.0e-3, 3.0e-3, 1.0e-2]
  lora_rank: [2, 4]
  batch_size: 2
  train_samples: 16
tasks:
  - name: sums
    data: {{train: {folder}/rows.jsonl, validation_samples: 6, max_length: 32}}
    search: {{target_modules: [q_proj]}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parking")
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def outcome(run: Path) -> tuple[list[str], dict[str, str]]:
    with Journal.read(run) as journal:
        decisions = journal.decision_log()
    return decisions, {path.parent.name: digest_of(path) for path in run.glob("sums/*/adapter_model.safetensors")}


def test_a_run_that_parks_on_the_device_is_the_run_that_parks_on_the_host(folder, tune, monkeypatch):
    made = {}
    for places, looks in ((0, ()), (1, ()), (3, (6, 5))):
        monkeypatch.setattr("altojax.run.loop.checkpointed_run.parking_places", lambda *_, places=places: places)
        name = f"{places}-{len(looks)}"
        codes = [tune(name, looks=asked) for asked in (*looks, 10_000)]
        assert codes == [130] * len(looks) + [0]
        made[name] = outcome(folder / name)
    first, *others = made.values()
    assert sum('"park"' in line for line in first[0]) >= 4
    assert len(first[1]) == 7, "one more is a copy of the best"
    assert all(other == first for other in others)
