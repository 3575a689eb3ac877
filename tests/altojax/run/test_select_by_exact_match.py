"""Answers that trials generate together decide rungs and winner, and are those of each exported adapter by itself."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

import altojax
from altojax.cli import main
from altojax.config.tune_config import TuneConfig
from altojax.early_exit.metric import Score, by_score
from altojax.report.recorded_curves import read_run
from altojax.report.run_record import record_of
from altojax.run.prepare import prepare
from jaxlm.files.hf import save_model
from jaxlm.files.weights import load_model
from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal

pytestmark = pytest.mark.slow

CONFIG = """
output_dir: {folder}/run
model: {{model_name_or_path: {folder}/base, dtype: float32}}
slots: 3
select_by: exact_match
metric_budget: 1.0
eval_samples: 0.25
average: {{windows: [2]}}
early_exit: {{preset: none, halving: {{first: 0.5, rank_by: average}}}}
search: {{lora_rank: 4, learning_rate: [1.0e-4, 1.0e-2, 3.0e-2], batch_size: 4, train_samples: 320}}
tasks:
  - name: parity
    data: {{train: {folder}/rows.jsonl, validation: {folder}/validation.jsonl, max_length: 32}}
    search: {{target_modules: [q_proj, v_proj, down_proj]}}
"""


def write(path: Path, numbers) -> None:
    rows = ({"prompt": f"{number}:" + "-" * (number % 3), "completion": "ab" if number % 2 else "c"}
            for number in numbers)  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exact")
    write(folder / "rows.jsonl", range(100, 160))
    write(folder / "validation.jsonl", range(200, 220))
    config, model = load_model("configs/tiny", dtype=jnp.float32, random_init=True, seed=0)
    save_model(folder / "base", config, model, dtype=jnp.float32)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path("configs/tiny", name), folder / "base" / name)
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def config_of(folder: Path, *overrides: str) -> TuneConfig:
    return load_config(TuneConfig, folder / "run.yaml", list(overrides))


def rows_of(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]


def share_right(model, rows, most: int) -> float:
    made = model.generate([row["prompt"] for row in rows], max_new_tokens=most, batch_size=1)
    return sum(text.strip() == row["completion"] for text, row in zip(made, rows, strict=True)) / len(rows)


def metrics_of(run: Path) -> dict[str, dict]:
    return {one.trial: {name: steps for name, steps in one.more.items() if "match" in name}
            for one in record_of(run).trials}  # fmt: skip


def test_it_is_what_each_exported_adapter_and_the_base_generate_alone(folder, whole):
    record, rows = record_of(whole), rows_of(folder)
    most = prepare(config_of(folder)).data["parity"].questions.max_new_tokens
    shares = {}
    for trial in record.trials:
        shares[trial.trial] = share_right(altojax.load(whole, trial=trial.trial), rows, most)
    assert shares == {trial.trial: trial.metric for trial in record.trials}
    assert max(shares.values()) > 0, "somebody is right"
    assert share_right(altojax.load(whole, adapter=False, task="parity"), rows, most) == record.trials[0].base_metric


def test_trials_alone_on_a_device_of_a_mesh_answer_as_all_together_on_one(tune, folder, whole):
    assert tune("mesh", "slots=2", "mesh={adapter: 2}") == 0
    assert metrics_of(folder / "mesh") == metrics_of(whole)


def test_transformers_and_peft_answer_with_each_exported_adapter_as_the_trial_did(folder, whole, reference):
    prepared = prepare(config_of(folder))
    asked, tokenizer = prepared.data["parity"].questions, prepared.bases[0].tokenizers["parity"]
    trials = record_of(whole).trials
    outs = [folder / f"{trial.trial}.json" for trial in trials]
    same = {"do": "answers", "base": str(folder / "base"), "new": asked.max_new_tokens, "ends": list(asked.ends)}
    same["prompts"] = [tokens.tolist() for tokens in asked.tokens]
    adapters = [str(whole / "parity" / trial.trial) for trial in trials]
    jobs = [{**same, "adapter": one, "out": str(out)} for one, out in zip(adapters, outs, strict=True)]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    reference("load_adapter.py", folder / "jobs.json")
    for trial, out in zip(trials, outs, strict=True):
        texts = [tokenizer.decode(made, skip_special_tokens=True) for made in json.loads(out.read_text())]
        right = [text.strip() == wanted for text, wanted in zip(texts, asked.references, strict=True)]
        assert sum(right) / len(right) == trial.metric
    assert any(trial.metric for trial in trials)


def test_adapter_and_average_are_asked_at_every_rung_and_end_and_the_better_is_the_result(whole):
    record = record_of(whole)
    names = {f"{whose}exact_match{part}" for whose in ("", "average_") for part in ("", "_error")}
    for trial in record.trials:
        asked = set(trial.more["exact_match"])
        assert {trial.validation[-1].step} <= asked < {point.step for point in trial.validation}
        assert {frozenset(trial.more[name]) for name in names} == {frozenset(asked)}
        assert trial.best.step in asked
    scores = {one.trial: one.best_score for one in record.trials}
    assert record.best_of("parity").trial == by_score(scores)[0]
    ended = next(trial for trial in record.trials if trial.status == "stopped")
    assert ended.detail.startswith("exact match ")
    found = Score.among(
        {name: steps[ended.validation[-1].step] for name, steps in ended.more.items()}, 0.0, average=True
    )
    assert f"exact match {100 * found.metric:.1f} %" in ended.detail


def test_a_result_that_is_the_average_is_chosen_by_the_averages_answers(tune, folder):
    assert tune("averaged", "result=average", "early_exit.halving.rank_by=average") == 0
    record = record_of(folder / "averaged")
    assert not any("exact_match" in trial.more for trial in record.trials), "the adapters themselves are not asked"
    most = prepare(config_of(folder)).data["parity"].questions.max_new_tokens
    best = record.best_of("parity")
    model = altojax.load(folder / "averaged")
    assert best.best.split == "average" and share_right(model, rows_of(folder), most) == best.metric


def test_it_is_told_wherever_a_run_is_read(whole, capsys):
    best = altojax.open_run(whole).best()
    shown = f"exact match {100 * best.metric:.1f} ± "
    assert shown in (whole / "parity" / "best" / "README.md").read_text()
    assert main(["status", str(whole)]) == 0
    assert f"parity: {best.trial}: {shown}" in capsys.readouterr().out
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {"exact_match", "average_exact_match"} < {line["split"] for line in lines}
    recorded = read_run(whole)
    assert recorded.rules.comparison.select_by == "exact_match"
    assert recorded.rules.lacking(set(next(iter(recorded.groups["parity"].values())).curve.more)) == {}


def test_a_run_that_was_stopped_goes_on_to_the_same_decisions(folder, tune, whole):
    assert tune("stopped", looks=40) == 130
    assert tune("stopped") == 0
    logs = []
    for run in (whole, folder / "stopped"):
        with Journal.read(run) as journal:
            events = [event for event in journal.events() if event.kind in ("rung", "end", "best", "base_loss")]
            logs.append([(event.kind, event.trial, {k: v for k, v in event.payload.items() if k != "slot_s"})
                         for event in events])  # fmt: skip
    assert logs[0] == logs[1]


def test_a_pattern_says_what_of_an_answer_is_compared(folder):
    questions = prepare(config_of(folder, "metric.answer_pattern=(a|c)", "metric.max_new_tokens=3")).data["parity"]
    assert questions.questions.max_new_tokens == 3
    assert "exact_match is of 20 of 20 validation rows, by answers of up to 3 tokens" in questions.notes


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["metric_budget=0.01"], r"metric_budget 0.01 pays for asking 0 of 20 .* for answers of up to \d+ tokens"),
        (["metric.answer_pattern=(d)"], r"metric.answer_pattern: '\(d\)' finds nothing in the answer of 20 val"),
        (["metric.answer_pattern=("], r"metric.answer_pattern: .*is not a regular expression"),
        (["metric.max_new_tokens=100000"], "no validation row has a prompt of at most .*smaller metric.max_new_tokens"),
        (["early_exit=median"], "median compares losses alone"),
        (["metric.command=[cat]"], "metric.command is given, but select_by is exact_match, expected score"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(folder, overrides, said):
    with pytest.raises(UserError, match=said):
        prepare(config_of(folder, *overrides))


def test_rows_that_ask_nothing_are_refused(folder):
    (folder / "text.jsonl").write_text('{"text": "abc"}\n' * 20)
    files = [f"tasks.0.data.{split}={folder}/text.jsonl" for split in ("train", "validation")]
    with pytest.raises(UserError, match=r"text.jsonl:\d+: running text has no prompt.*select_by: exact_match"):
        prepare(config_of(folder, *files))
