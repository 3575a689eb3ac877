"""Trials of pairs whose losses cannot be compared: rungs, winner and reports go by what they prefer."""

import json
from pathlib import Path

import pytest

from altojax.adapters.peft_config import CONFIG_NAME
from altojax.config.tune_config import TuneConfig
from altojax.early_exit.metric import beats, error_of_share
from altojax.report.record_tables import trial_rows
from altojax.report.recorded_curves import read_run
from altojax.report.run_record import RunRecord, record_of
from altojax.report.worth import worth_of
from altojax.run.prepare import prepare
from jaxrun.config.config import check_config
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal

PAIRS = 10
CONFIG = """
output_dir: {folder}/run
model: {{model_name_or_path: configs/tiny, random_init: true, dtype: float32}}
objective: dpo
slots: 4
eval_samples: 0.25
average: {{windows: [8]}}
early_exit: {{preset: none, underperforming: {{at: [0.5], keep: [0.5]}}}}
search:
  batch_size: 4
  train_samples: 32
  lr_scheduler_type: constant
  configurations:
    - {{loss_type: sigmoid, beta: 0.1, learning_rate: 1.0e-12}}
    - {{loss_type: hinge, beta: 0.01, learning_rate: 1.0e-2}}
    - {{loss_type: sigmoid, beta: 0.2, learning_rate: 1.0e-12}}
    - {{loss_type: ipo, beta: 0.05, learning_rate: 1.0e-2}}
tasks:
  - {{name: taste, data: {{train: {folder}/pairs.jsonl, validation_samples: {pairs}, max_length: 32}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds pairs of which the shorter answer is chosen, and a config."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [
        {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": f"the sum is {a + b}"}
        for a in range(7)
        for b in range(7)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder, pairs=PAIRS))
    return folder


@pytest.fixture(scope="module")
def record(whole) -> RunRecord:
    return record_of(whole)


pytestmark = pytest.mark.slow


def test_who_prefers_more_pairs_rightly_wins_whatever_the_losses_are(record):
    """Hinge and IPO have losses above that of sigmoid, which has learnt nothing."""
    still, hinge, _, ipo = record.trials
    assert min(hinge.best_loss, ipo.best_loss) > still.best_loss
    assert hinge.best_score.metric > 0.8 > 0.2 > still.best_score.metric
    best = record.best_of("taste")
    assert best in (hinge, ipo) and best.select_by == "preference"
    other = ipo if best is hinge else hinge
    assert beats(best.best_score, other.best_score)
    assert best.best_score.loss != best.best_loss, "ties go by a loss of one beta"
    assert best.metric_sentence().startswith("preference accuracy ")


def test_what_tuning_was_worth_is_told_by_losses_of_one_beta(record):
    best = record.best_of("taste")
    comparable = {loss for name in ("dpo_loss", "average_dpo_loss") for loss in best.more[name].values()}
    found = worth_of(record.of_task("taste"), best)
    assert found is not None and found.comparisons
    for one in found.comparisons:
        assert one.winner_loss is None or one.winner_loss in comparable


def test_rungs_end_those_that_prefer_fewer(record):
    fates = [one.reason for one in record.trials]
    assert fates == ["underperforming", "schedule done", "underperforming", "schedule done"]
    assert record.trials[0].detail.startswith("preference accuracy 0.0 %, last DPO loss at β 0.1 0.693")


def test_the_journal_says_what_decided(whole, record):
    with Journal.read(whole) as journal:
        [best] = [one.payload for one in journal.events("best")]
        points = journal.points()
    names = {"rewards/accuracies", "rewards/accuracies_error", "dpo_loss"}
    names |= {f"average_{name}" for name in names}
    assert names <= {one.split for one in points}
    assert best["metric_error"] == pytest.approx(error_of_share(best["metric"], PAIRS))
    assert trial_rows(record)[1]["metric"] == record.trials[1].metric


def test_its_curves_are_replayed_as_it_went(whole, record):
    rules = read_run(whole).rules
    assert rules.comparison is not None and rules.comparison.select_by == "preference"


def test_a_run_of_fewer_slots_that_is_stopped_decides_the_same(folder, tune, whole, record):
    assert tune("stopped", looks=5) == 130
    assert tune("stopped") == 0
    with Journal.read(whole) as one, Journal.read(folder / "stopped") as other:
        assert one.decision_log() == other.decision_log()


def test_the_best_folder_is_the_winners(whole, record):
    best = record.best_of("taste")
    card = (whole / "taste" / "best" / "README.md").read_text()
    assert best is not None and best.trial in card and "preference accuracy" in card
    assert (whole / "taste" / "best" / CONFIG_NAME).exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"early_exit": "median"}, "median compares losses alone, but select_by is preference"),
        (
            {"early_exit": {"preset": "none", "top_k": {"select_by": "preference"}}, "objective": "sft"},
            "early_exit.top_k.select_by is preference, but task 'taste' has no pairs",
        ),
        ({"select_by": "accuracy"}, "select_by is accuracy, expected loss"),
    ],
)
def test_what_cannot_be_compared_so_is_refused(folder, more, said):
    model = {"model_name_or_path": "configs/tiny", "random_init": True}
    task = {"name": "taste", "data": {"train": str(folder / "pairs.jsonl"), "max_length": 32}}
    config = {"output_dir": "x", "model": model, "objective": "dpo", "tasks": [task], **more}
    with pytest.raises(UserError) as caught:
        prepare(check_config(TuneConfig, config, "x"))
    assert said in str(caught.value) and "\n" not in str(caught.value)
