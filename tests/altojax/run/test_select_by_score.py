"""Scores that code of the user's gives to answers decide rungs and the winner; no code runs that no config names."""

import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

import altojax
from altojax.config.tune_config import TuneConfig
from altojax.report.run_record import record_of
from altojax.run.prepare import prepare
from altojax.run.tuner import Tuner
from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError

pytestmark = pytest.mark.slow

CONFIG = """
output_dir: {folder}/run
model: {{model_name_or_path: configs/tiny, random_init: true, dtype: float32}}
slots: 1
select_by: score
metric: {{max_new_tokens: 2}}
metric_budget: 1.0
eval_samples: 0.5
average: {{windows: []}}
early_exit: {{preset: none, halving: {{first: 0.5}}}}
search: {{lora_rank: 4, learning_rate: [1.0e-4, 3.0e-2], batch_size: 4, train_samples: 160}}
tasks:
  - name: parity
    data: {{train: {folder}/rows.jsonl, validation: {folder}/validation.jsonl, max_length: 32}}
    search: {{target_modules: [q_proj]}}
"""
COMMAND = """
import json, sys
rows = [json.loads(line) for line in sys.stdin]
print(*(0.25 + 0.5 * (row["answer"][:1] == row["reference"][:1]) for row in rows), sep="\\n")
"""


def score(prompt: str, answer: str, reference: str) -> float:
    assert prompt.removesuffix(":") in map(str, range(200, 220)) and reference in ("ab", "c")
    return 0.25 + 0.5 * (answer[:1] == reference[:1])


def write(path: Path, numbers) -> None:
    rows = ({"prompt": f"{number}:", "completion": "ab" if number % 2 else "c"} for number in numbers)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    write(folder / "rows.jsonl", range(100, 160))
    write(folder / "validation.jsonl", range(200, 220))
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    (folder / "score.py").write_text(COMMAND)
    return folder


def config_of(folder: Path, *overrides: str) -> TuneConfig:
    return load_config(TuneConfig, folder / "run.yaml", list(overrides))


def scores_of(run: Path):
    return {one.trial: (one.base_metric, one.more["score"], one.more["score_error"]) for one in record_of(run).trials}


def test_a_command_and_a_function_decide_as_the_scores_of_single_answers_do(folder, tune):
    assert tune("command", f"metric.command=[{sys.executable}, {folder}/score.py]") == 0
    config = config_of(folder, f"output_dir={folder}/function")
    assert Tuner(config, console=Console(quiet=True), score=score).run() == 0
    assert scores_of(folder / "command") == scores_of(folder / "function")
    best = altojax.open_run(folder / "command").best()
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    model = altojax.load(folder / "command")
    made = model.generate([row["prompt"] for row in rows], max_new_tokens=2)
    alone = [score("200:", text, row["completion"]) for text, row in zip(made, rows, strict=True)]
    assert best.metric == pytest.approx(sum(alone) / 20) and 0.25 <= best.metric <= 0.75
    _, _, errors = next(iter(scores_of(folder / "command").values()))
    assert all(0 < error < 0.11 for error in errors.values())


def test_an_error_of_the_users_code_ends_the_run_in_a_line_and_the_same_command_goes_on(folder, tune):
    with pytest.raises(UserError, match=r"metric.command: false ended with code 1"):
        tune("failing", "metric.command=['false']")


def test_nothing_of_the_users_runs_before_the_run_does(folder):
    marker = folder / "ran"
    prepare(config_of(folder, f"metric.command=[touch, {marker}]"))
    prepare(config_of(folder, "metric.python=no_such_module:f"))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("overrides", "given", "said"),
    [
        ([], None, "select_by is score, but metric has neither python nor command"),
        (["metric.python=no_such_module:f"], None, "module 'no_such_module' cannot be imported"),
        (["metric.python=math:sqrt"], score, "a function was given beside metric.python, expected one of them"),
        (["metric.python=math:sqrt", "metric.command=[cat]"], None, "are both given, expected one of them"),
        (["metric.python=math"], None, "metric.python"),
        (["metric.command=[]"], None, "metric.command"),
        (["metric.answer_pattern=a"], None, "metric.answer_pattern is given, but select_by is score"),
        (["metric.max_new_tokens=null", "select_by=loss"], score, "a function was given, but select_by is loss"),
        ([], "words", "score: given 'words', expected a function"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(folder, overrides, given, said):
    with pytest.raises(UserError, match=said):
        Tuner(config_of(folder, *overrides), console=Console(quiet=True), score=given)
    assert not (folder / "run").exists()
