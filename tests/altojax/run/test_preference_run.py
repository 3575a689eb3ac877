"""Runs of preference pairs: what they record, alone as together, and resumed to the same bits."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from altojax.cli import main
from altojax.config.objectives import needs_reference
from altojax.config.search.space import SearchSpace, merged
from altojax.config.tune_config import TuneConfig
from altojax.device.executor import Executor
from altojax.report.held_out import HeldOut
from altojax.report.record_tables import trial_rows
from altojax.report.run_record import record_of
from altojax.run.loop import reference
from altojax.run.prepare import prepare
from altojax.run.run_identity import differences, identity_of
from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal
from jaxrun.store.records import PREFERENCES

LOSS_BOUND = 2e-6  # other neighbours and slots: another order of float32 sums (test_solo_law.py)
LN_2 = math.log(2)
CONFIG = """
output_dir: {folder}/run
model: {{model_name_or_path: configs/tiny, random_init: true, dtype: float32}}
objective: dpo
slots: 4
eval_samples: 0.5
checkpoint_samples: 0.05
early_exit: {{preset: none}}
search:
  batch_size: 2
  train_samples: 16
  target_modules: [q_proj, v_proj]
  lora_rank: 4
  configurations:
    - {{loss_type: sigmoid, beta: 0.5, learning_rate: 1.0e-12}}
    - {{loss_type: ipo, beta: 0.2, learning_rate: 1.0e-2, sft_weight: 0.1}}
    - {{loss_type: simpo, beta: 2.0, simpo_gamma: 0.5, learning_rate: 1.0e-2}}
    - {{loss_type: orpo, beta: 0.2, learning_rate: 1.0e-2}}
tasks:
  - name: sums
    data: {{train: {folder}/pairs.jsonl, validation_samples: 6, test_samples: 5, max_length: 32, chat_template: false}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds pairs and a config; the runs of all tests."""
    folder = tmp_path_factory.mktemp("runs")
    sums = [(a, b) for a in range(6) for b in range(6)]
    pairs = [{"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": f"{a + b}{a + b + 1}"} for a, b in sums]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def points(run: Path) -> dict[tuple[str | None, str], list[float]]:
    """Values by trial and split, in their order."""
    found: dict[tuple[str | None, str], list[float]] = {}
    with Journal.read(run) as journal:
        for point in journal.points():
            found.setdefault((point.trial, point.split), []).append(point.loss)
    return found


def test_of_a_trial_that_does_not_move_dpo_is_ln_2_and_margins_are_0(whole):
    found = points(whole)
    assert found[None, "base"] == pytest.approx([LN_2], abs=1e-6)
    assert found["trial-0", "train"] == pytest.approx([LN_2] * 2, abs=1e-6)
    assert found["trial-0", "validation"] == pytest.approx([LN_2] * 2, abs=1e-6)
    assert found["trial-0", "rewards/margins"] == pytest.approx([0.0] * 2, abs=1e-5)


def test_what_trl_reports_is_recorded_of_every_evaluation(whole):
    found = points(whole)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    for trial in ("trial-0", "trial-1", "trial-2", "trial-3"):
        named = {name: np.array(found[trial, name]) for name in PREFERENCES}
        assert all(len(values) == 2 for values in named.values())
        ahead = named["rewards/chosen"] - named["rewards/rejected"]
        assert named["rewards/margins"] == pytest.approx(ahead, abs=1e-5)
        assert ((named["rewards/accuracies"] >= 0) & (named["rewards/accuracies"] <= 1)).all()
        written = [line["loss"] for line in lines if (line["trial"], line["split"]) == (trial, "logps/chosen")]
        assert written == pytest.approx(named["logps/chosen"].tolist())
    assert all(found[f"trial-{i}", "train"][1] < found[f"trial-{i}", "train"][0] for i in (1, 2, 3))


def test_the_loss_of_the_base_is_by_each_trials_own(whole):
    """Of the base margins are 0, but what has no reference compares the answers' own log-probabilities."""
    record = record_of(whole)
    sigmoid, ipo, simpo, orpo = (one.base_loss for one in record.trials)
    assert sigmoid == pytest.approx(LN_2, abs=1e-6) and 6.25 + 0.1 < ipo < 6.25 + 0.1 * 10
    assert 0 < simpo < 10 and 0 < orpo - (ipo - 6.25) / 0.1 < 0.5, "cross-entropy of the chosen answers, and 0.2 · ln 2"
    assert not record.base_loss, "the task has no one loss"


def test_the_best_is_tested_on_pairs_that_chose_nothing(whole):
    with Journal.read(whole) as journal:
        [tested] = [HeldOut.from_payload(event.payload) for event in journal.events("test")]
    assert tested.rows == tested.targets == 5 and 5 * tested.accuracy in range(6)
    assert tested.sentence().startswith(f"test accuracy {100 * tested.accuracy:.1f} %, test loss")
    [row] = [row for row in trial_rows(record_of(whole)) if row["test_loss"] is not None]
    kind = {"trial-0": "sigmoid", "trial-1": "ipo", "trial-2": "simpo", "trial-3": "orpo"}[row["trial"]]
    assert (row["test_accuracy"], row["loss_type"]) == (tested.accuracy, kind)


def test_evaluate_says_what_the_base_and_a_trial_prefer_as_the_run_did(whole, tmp_path):
    assert main(["evaluate", str(whole), "trial=trial-1", f"out={tmp_path}/found.json"]) == 0
    base, tuned = json.loads((tmp_path / "found.json").read_text())["results"]
    step = next(row["best_step"] for row in trial_rows(record_of(whole)) if row["trial"] == "trial-1") // 4 - 1
    recorded = {name: points(whole)["trial-1", name][step] for name in PREFERENCES}
    assert tuned["logps/chosen"] == pytest.approx(recorded["logps/chosen"], rel=1e-5)
    assert tuned["logps/rejected"] == pytest.approx(recorded["logps/rejected"], rel=1e-5)
    assert tuned["ahead of base"] == pytest.approx(recorded["rewards/accuracies"]) and base["ahead of base"] == 0


def test_a_trial_of_pairs_gets_alone_what_it_gets_beside_other_losses(whole, tune, folder):
    own = "search.configurations=[{loss_type: ipo, beta: 0.2, learning_rate: 1.0e-2, sft_weight: 0.1}]"
    assert tune("alone", own, "slots=1") == 0
    alone, together = points(folder / "alone"), points(whole)
    for split in ("train", "validation", *PREFERENCES):
        assert alone["trial-0", split] == pytest.approx(together["trial-1", split], abs=20 * LOSS_BOUND), split
    assert alone["trial-0", "train"] == pytest.approx(together["trial-1", "train"], abs=LOSS_BOUND)


def test_a_run_that_is_stopped_goes_on_to_the_same_bits_by_the_references_that_it_kept(
    whole, tune, folder, monkeypatch
):
    assert tune("stopped", looks=5) == 130
    kept = load_file(folder / "stopped" / "reference" / "sums.safetensors")["logps"]
    assert kept.shape == (72,) and (kept < 0).all()

    def again(*_):
        raise AssertionError("references were computed again")

    monkeypatch.setattr(reference, "_computed", again)
    assert tune("stopped") == 0
    for name in ("best", "trial-1", "trial-3"):
        one, other = (
            load_file(run / "sums" / name / "adapter_model.safetensors") for run in (folder / "stopped", whole)
        )
        assert all(np.array_equal(one[key], other[key]) for key in other) and one.keys() == other.keys()


@pytest.mark.slow
def test_answers_alone_are_tuned_by_their_labels_also_where_a_run_is_stopped(folder, tune):
    """Where nothing moves KTO's loss is half its weights, and the divergence from the reference 0."""
    rows = [
        {"prompt": f"{a}+{b}=", "completion": f"{a + b}" if good else f"{a + b}{b}", "label": good}
        for a in range(4)
        for b in range(4)
        for good in (True, False)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = "[{loss_type: kto, learning_rate: 1.0e-12, undesirable_weight: 1.5}, {loss_type: kto, learning_rate: 0.01}"
    losses += ", {loss_type: apo_zero_unpaired, learning_rate: 0.01}]"
    own = f"search.configurations={losses}", f"tasks.0.data.train={folder}/answers.jsonl", "search.train_samples=8"
    assert tune("kto", *own, looks=4) == 130 and tune("kto", *own) == 0
    found = points(folder / "kto")
    for split in ("rewards/margins", "kl"):
        assert found["trial-0", split] == pytest.approx([0.0] * 2, abs=1e-5)
    validation, ahead = found["trial-0", "validation"][0], found["trial-1", "rewards/margins"][-1]
    assert 0.5 <= validation <= 0.75 and ("trial-2", "kl") not in found
    chosen, rejected = (found["trial-1", f"rewards/{name}"][-1] for name in ("chosen", "rejected"))
    assert ahead == pytest.approx(chosen - rejected, abs=1e-5) and found["trial-1", "kl"][-1] >= 0
    assert main(["evaluate", str(folder / "kto"), "trial=trial-1", f"out={folder}/found.json"]) == 0
    base, tuned = json.loads((folder / "found.json").read_text())["results"]
    best = next(row["best_step"] for row in trial_rows(record_of(folder / "kto")) if row["trial"] == "trial-1") // 2 - 1
    for split in ("logps/chosen", "logps/rejected"):
        assert tuned[split] == pytest.approx(found["trial-1", split][best], rel=1e-5) != base[split]
    assert tuned["ahead of base"] == pytest.approx(found["trial-1", "rewards/accuracies"][best]) and "loss" in base
    with Journal.read(folder / "kto") as journal:
        [tested] = [HeldOut.from_payload(event.payload) for event in journal.events("test")]
    assert tested.rows == 5 and 5 * tested.accuracy in range(6)


def test_references_of_a_base_that_was_changed_or_that_are_damaged_are_not_read(whole, folder, tune, monkeypatch):
    assert tune("damaged", looks=3) == 130
    with monkeypatch.context() as changed:
        changed.setattr(Executor, "base_digest", lambda self: "of other weights")
        changed.setattr(reference, "_computed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tune("damaged")
    kept = folder / "damaged" / "reference" / "sums.safetensors"
    flipped = bytearray(kept.read_bytes())
    flipped[-1] ^= 1
    for damaged in (b"x" * 20, bytes(flipped)):
        kept.write_bytes(damaged)
        with pytest.raises(UserError, match=r"sums.safetensors: damaged \("):
            tune("damaged")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (["sigmoid", "ipo"], ["ipo", "hinge"], "tasks.sums.search.loss_type"),
        (["ipo", "simpo"], ["simpo"], "tasks.sums.search (without 1 of its trials, such as that of loss_type ipo"),
    ],
)
def test_trials_whose_losses_read_other_keys_are_told_apart(folder, before, after, said):
    """Trials have no keys that their loss does not read."""

    def identity(losses: list[str]) -> dict:
        given = [f"search.configurations=[{', '.join(f'{{loss_type: {one}, beta: 2.0}}' for one in losses)}]"]
        config = load_config(TuneConfig, folder / "run.yaml", given)
        return identity_of(config, prepare(config))

    assert differences(identity(before), identity(after))[0].startswith(said)


def test_a_configuration_that_names_no_loss_has_that_of_the_search_space(folder):
    """And its reference, beside others without one."""

    def space(listed: str, *more: str) -> dict:
        given = [f"search.configurations={listed}", *more]
        return merged(load_config(TuneConfig, folder / "run.yaml", given).search, SearchSpace())

    assert needs_reference(space("[{loss_type: simpo}, {beta: 0.2, label_smoothing: 0.1}]"))
    assert needs_reference(space("[{loss_type: simpo}, {beta: 0.2}]", "search.loss_type=ipo"))
    assert not needs_reference(space("[{loss_type: simpo}, {beta: 0.2}]", "search.loss_type=orpo"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["objective=sft"], "search.loss_type is given, but no task's objective reads it, expected objective: dpo"),
        (["search.label_smoothing=0.1", "search.configurations=[{loss_type: ipo}]"], "expected a loss_type that does"),
        (["tasks.0.data.packing=true"], "data.packing is true, expected false"),
        (["tasks.0.data.train_on=all"], "data.train_on is all, expected completion"),
        (["select_by=accuracy"], "select_by is accuracy, expected loss"),
        (["search.configurations=[{loss_type: hinge, label_smoothing: 0.1}, {}]"], "expected a loss_type that does"),
        (["search.configurations=[{loss_type: sigmod}]"], "sigmoid"),
        (["search.configurations=[{loss_type: dpo}]"], "did you mean 'sigmoid'"),
        (["objective=orpo"], "did you mean 'dpo'"),
        (["ref_adapter_name=start"], "did you mean 'tasks.0.init_adapter'"),
        (["search.configurations=[{label_smoothing: 0.5}]"], "less than 0.5"),
        (["search.configurations=[{loss_type: ipo}, {loss_type: kto}]"], "expected a task for each"),
        (["search.configurations=[{loss_type: ipo, desirable_weight: 2}]"], "expected a loss_type that does: kto, apo"),
    ],
)
def test_keys_that_pairs_do_not_have_are_refused_by_name(folder, given, said):
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        load_config(TuneConfig, folder / "run.yaml", given)
