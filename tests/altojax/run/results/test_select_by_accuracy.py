"""Accuracy decides rungs and the winner, and is what rows scored one by one say of the exported adapter."""

import json
from pathlib import Path

import pytest

import altojax
from altojax.cli import main
from altojax.config.tune_config import TuneConfig
from altojax.early_exit.metric import Score, by_score
from altojax.inference.loaded_model import load_adapted
from altojax.inference.model_source import find_source
from altojax.report.recorded_curves import read_run
from altojax.report.run_record import record_of
from altojax.run.prepare import prepare
from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal

CONFIG = """
output_dir: {folder}/run
model: {{model_name_or_path: configs/tiny, random_init: true, dtype: float32}}
slots: 2
select_by: accuracy
metric_budget: 1.0
eval_samples: 0.25
average: {{windows: []}}
early_exit: {{preset: none, halving: {{first: 0.5}}}}
search: {{lora_rank: 4, learning_rate: [1.0e-4, 3.0e-2], batch_size: 4, train_samples: 160}}
tasks:
  - name: parity
    data: {{train: {folder}/rows.jsonl, validation: {folder}/validation.jsonl, max_length: 32}}
    search: {{target_modules: [q_proj, v_proj]}}
"""


def write(path: Path, numbers) -> None:
    rows = ({"prompt": f"{number}:", "completion": "ab" if number % 2 else "c"} for number in numbers)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("accuracy")
    write(folder / "rows.jsonl", range(100, 160))
    write(folder / "validation.jsonl", range(200, 220))
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def config_of(folder: Path, *overrides: str) -> TuneConfig:
    return load_config(TuneConfig, folder / "run.yaml", list(overrides))


def test_it_is_what_rows_scored_one_by_one_say_of_winner_and_base(folder, whole):
    best = altojax.open_run(whole).best()
    questions = prepare(config_of(folder)).data["parity"].questions
    assert len(questions) == 20 and questions.labels == ("ab", "c")
    adapted = load_adapted(find_source(str(whole))).adapted
    sums = [adapted.losses([row], rows_at_once=1) for row in questions.candidates]
    targets = [int(row.targets.sum()) for row in questions.candidates]
    assert len(set(targets)) == 2, "labels of unlike lengths: sums decide, not means"
    for slot, accuracy in ((0, best.base_metric), (1, best.metric)):
        each = [one[slot] * count for one, count in zip(sums, targets, strict=True)]
        right = [(each[2 * i] > each[2 * i + 1]) == (own == 1) for i, own in enumerate(questions.right)]
        assert sum(right) / 20 == accuracy


def test_every_rung_and_end_has_one_and_the_winner_is_the_first_by_it(whole):
    record = record_of(whole)
    for trial in record.trials:
        last = trial.validation[-1].step
        assert last in trial.more["accuracy"] and set(trial.more["accuracy"]) == set(trial.more["accuracy_error"])
        assert set(trial.more["accuracy"]) < {point.step for point in trial.validation}
        assert trial.best.step in trial.more["accuracy"]
    scores = {
        trial.trial: Score(trial.metric, trial.more["accuracy_error"][trial.best.step], trial.best_loss)
        for trial in record.trials
    }
    assert record.best_of("parity").trial == by_score(scores)[0]
    assert [trial.status for trial in record.trials].count("stopped") == 1
    ended = next(trial for trial in record.trials if trial.status == "stopped")
    assert ended.detail.startswith("accuracy ")


def test_it_is_told_in_tables_on_the_card_and_by_status(whole, capsys):
    best = altojax.open_run(whole).best()
    rows = altojax.open_run(whole).trials()
    rows = rows if isinstance(rows, list) else rows.to_dict("records")
    assert {row["trial"]: row["metric"] for row in rows}[best.trial] == best.metric
    assert f"{100 * best.metric:.1f} ± " in (whole / "parity" / "best" / "README.md").read_text()
    assert main(["status", str(whole)]) == 0
    assert f"parity: {best.trial}: accuracy {100 * best.metric:.1f} ± " in capsys.readouterr().out
    assert record_of(whole).clock["metric_s"] > 0


def test_a_replay_of_the_run_ranks_as_the_run_did(whole):
    recorded = read_run(whole)
    assert recorded.rules.comparison.select_by == "accuracy"
    assert recorded.rules.lacking(set(next(iter(recorded.groups["parity"].values())).curve.more)) == {}


def test_a_run_that_was_stopped_goes_on_to_the_same_decisions(folder, tune, whole):
    assert tune("stopped", looks=25) == 130
    assert tune("stopped") == 0
    logs = []
    for run in (whole, folder / "stopped"):
        with Journal.read(run) as journal:
            events = [event for event in journal.events() if event.kind in ("rung", "end", "best", "base_loss")]
            logs.append([(event.kind, event.trial, {k: v for k, v in event.payload.items() if k != "slot_s"})
                         for event in events])  # fmt: skip
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["metric_budget=0.01"],
            r"task 'parity': metric_budget 0.01 pays for asking 0 of 20 .* expected 0\.\d+ or more",
        ),
        (["early_exit=median"], "median compares losses alone"),
        (["early_exit.halving.select_by=exact_match"], "select_by is exact_match, but select_by is accuracy"),
        (["metric.max_new_tokens=4"], "metric.max_new_tokens is given, but select_by is accuracy"),
        (["select_by=loss", "early_exit.halving.select_by=accuracy"], "a run measures what it selects by"),
        (["metric_budget=0"], "metric_budget"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(folder, overrides, said):
    with pytest.raises(UserError, match=said):
        prepare(config_of(folder, *overrides))


def test_a_choice_by_loss_asks_nothing(folder):
    assert prepare(config_of(folder, "select_by=loss", "metric_budget=0.01")).data["parity"].questions is None
