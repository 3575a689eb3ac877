"""Trials that start from an adapter: one of a folder, or the best of another task, for which they wait."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from altojax.report.run_record import record_of
from jaxrun.store.journal import Journal

LOSS_BOUND = 2e-6  # other neighbours and slots: another order of float32 sums (test_solo_law.py)
CONFIG = """
output_dir: {folder}/run
model: {{model_name_or_path: configs/tiny, random_init: true, dtype: float32}}
slots: 3
eval_samples: 0.5
checkpoint_samples: 0.05
early_exit: {{preset: none}}
search: {{batch_size: 2, train_samples: 16}}
tasks:
  - name: third
    objective: dpo
    init_adapter: {{best_of: second}}
    data: {{train: {folder}/pairs.jsonl, validation_samples: 6, max_length: 32}}
    search: {{learning_rate: [1.0e-12, 1.0e-3], beta: 0.5}}
  - name: second
    init_adapter: {{best_of: first}}
    data: {{train: {folder}/rows.jsonl, validation_samples: 6, max_length: 32}}
    search: {{learning_rate: [1.0e-12, 3.0e-3], lora_dropout: 0.1}}
  - name: first
    data: {{train: {folder}/rows.jsonl, validation_samples: 6, max_length: 32}}
    search:
      lora_alpha: 5
      use_rslora: true
      learning_rate: 1.0e-2
      configurations:
        - {{lora_rank: 2, target_modules: [q_proj]}}
        - {{lora_rank: 4, target_modules: 'model\\.layers\\.1\\..*(q|down)_proj'}}
"""
TASKS = ("first", "second", "third")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds rows and a config; the runs of all tests."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "none"} for row in rows[::2]]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def arrays(run: Path, trial: str) -> dict[str, np.ndarray]:
    return load_file(run / trial / "adapter_model.safetensors")


def decisions(run: Path) -> list[str]:
    with Journal.read(run) as journal:
        return journal.decision_log()


def trials(run: Path) -> dict[str, object]:
    return {f"{one.task}/{one.trial}": one for one in record_of(run).trials}


@pytest.mark.slow
def test_a_second_stage_continues_the_winner_of_the_first_with_its_shape(whole):
    found = trials(whole)
    first = min((one for name, one in found.items() if "first" in name), key=lambda one: one.best_loss)
    second = [found[f"second/trial-{i}"] for i in range(2)]
    for one in second:
        assert one.start == f"first/{first.trial}"
        for name in ("lora_rank", "lora_alpha", "use_rslora", "target_modules"):
            assert one.config[name] == first.config[name]
    kept, trained = ([point.loss for point in one.validation] for one in second)
    assert kept == [pytest.approx(first.best_loss, abs=LOSS_BOUND)] * 2, "at a rate of nothing it is that adapter"
    assert min(trained) < first.best_loss - 10 * LOSS_BOUND
    start, end = arrays(whole, "first/best"), arrays(whole, "second/trial-0")
    for name, array in start.items():
        np.testing.assert_allclose(end[name], array, atol=1e-9)
    lines = decisions(whole)
    begun = next(i for i, line in enumerate(lines) if '"adopt"' in line)
    ended = [i for i, line in enumerate(lines) if '"end"' in line and '"first"' in line]
    assert max(ended) < begun < min(i for i, line in enumerate(lines) if '"start"' in line and '"second"' in line)


@pytest.mark.slow
def test_preference_tuning_of_a_winner_begins_at_a_margin_of_nothing_to_it(whole):
    """Its reference is that adapter, not the base."""
    found = trials(whole)
    still, moved = (found[f"third/trial-{i}"] for i in range(2))
    assert (
        still.start.startswith("second/trial-") and still.config["lora_rank"] == found[still.start].config["lora_rank"]
    )
    assert [point.loss for point in still.validation] == [pytest.approx(math.log(2), abs=1e-6)] * 2
    assert still.base_loss != pytest.approx(math.log(2), abs=1e-3) and moved.best_loss < math.log(2) - 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("task", "before"), [("second", "first"), ("third", "second")])
def test_a_trial_that_starts_from_a_folder_alone_is_the_one_that_started_in_the_run(folder, whole, tune, task, before):
    """The solo law, and the two ways to name an adapter."""
    [given] = [one for one in yaml.safe_load((folder / "run.yaml").read_text())["tasks"] if one["name"] == task]
    given["init_adapter"] = str(whole / before / "best")
    assert tune(f"alone-{task}", f"tasks={json.dumps([given])}", "slots=1") == 0
    for trial in (f"{task}/trial-0", f"{task}/trial-1"):
        together, alone = trials(whole)[trial], trials(folder / f"alone-{task}")[trial]
        assert [point.loss for point in alone.validation] == [
            pytest.approx(point.loss, abs=LOSS_BOUND) for point in together.validation
        ]
        for name, array in arrays(whole, trial).items():
            np.testing.assert_allclose(arrays(folder / f"alone-{task}", trial)[name], array, atol=1e-5)


@pytest.mark.slow
def test_it_resumes_to_the_same_bits_wherever_it_stops(folder, whole, tune):
    """Just when a task has ended whose best another waits for, and once that of another objective has begun."""
    stages = []
    looks = iter([7, 7, 1000])
    while tune("stopped", looks=next(looks)) == 130:
        with Journal.read(folder / "stopped") as journal:
            progress = journal.last_checkpoint().manifest["progress"]
        stages.append([sorted({one["phase"] for name, one in progress.items() if task in name}) for task in TASKS])
    done, planned, running = ["done"], ["planned"], ["running"]
    assert stages == [[done, planned, planned], [done, done, running]]
    assert decisions(folder / "stopped") == decisions(whole)
    for trial in ("first/best", "second/trial-1", "third/trial-0", "third/trial-1"):
        ours, theirs = arrays(folder / "stopped", trial), arrays(whole, trial)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs | ours)
