import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from played_runs import made_up, play
from played_runs import write as write_run

from altojax.early_exit.curve import Curve, average_name
from altojax.early_exit.milestones import rung_steps
from altojax.early_exit.replay import RecordedTrial
from altojax.early_exit.rules import Rules
from altojax.report.curve_files import read_curves
from altojax.report.recorded_curves import read_run
from altojax.report.run_record import read_record
from jaxrun.store.journal import Journal

STUB = """#!{python}
import json, sys
job = json.loads(open(sys.argv[2]).read())
if "processes" in job:
    stages = [
        dict(
            processes=count,
            data=name,
            setup_s=2.0,
            evaluation_s=1.0,
            steps=[
                dict(batch_size=one["batch_size"], step_s=0.5 * count**0.5, steps=9, cores=1.0, busy=None)
                for one in job["configurations"]
            ],
        )
        for count in job["processes"]
        for name in job["rows"]
    ]
    told = dict(imports_s=4.0, stages=stages)
else:
    trials = [
        dict(one, setup_s=2.0, step_s=0.5, evaluation_s=1.0, validation_loss=3.0) for one in job["configurations"]
    ]
    told = dict(imports_s=4.0, device="none", trials=trials)
open(sys.argv[3], "w").write(json.dumps(told))
"""


@pytest.fixture
def load(script, monkeypatch):
    """Loads a script and those beside it."""
    monkeypatch.syspath_prepend("scripts/reproduce")
    yield script
    for name in ("grid_numbers", "grid_page", "grid_times", "gpu_share"):
        sys.modules.pop(name, None)


def curve(*losses, steps=(5.0, 10.0, 20.0)):
    at = np.array(steps)
    return RecordedTrial(at, 20, Curve(at / 20, np.array(losses), np.array(losses)))


def test_one_at_a_time_pays_once_what_is_paid_once_and_each_step_at_its_batch_sizes_price(load):
    alone = load("grid_numbers").Alone(once_s=10.0, each_s=2.0, step_s={1: 0.1, 8: 0.4})
    assert alone.total_s([(1, 100), (1, 50), (8, 10)]) == pytest.approx(10 + 3 * 2 + 150 * 0.1 + 10 * 0.4)


def test_several_processes_take_the_longest_first_and_as_long_as_the_last_of_them(load):
    alone = load("grid_numbers").Alone(once_s=10.0, each_s=2.0, step_s={1: 0.1, 8: 0.4})
    configurations = [(8, 10), (1, 100), (1, 50), (1, 30), (1, 20)]  # 6, 12, 7, 5 and 4 seconds
    assert alone.shared_s(configurations, 2) == pytest.approx(10 + max(12 + 5, 7 + 6 + 4))
    assert alone.shared_s(configurations, 1) == pytest.approx(alone.total_s(configurations))
    assert alone.shared_s(configurations, 9) == pytest.approx(10 + 12)


def test_the_picture_of_times_has_every_arm_that_was_run_on_a_linear_axis(load, tmp_path):
    times = load("grid_times")
    seconds = {"a": {"peft": 6000.0, "crowd": 600.0, "full": 60.0}, "b": {"peft": 7000.0, "topk": 120.0}}
    (tmp_path / "times.csv").write_text(times.times_csv(seconds))
    assert times.read_times(tmp_path / "times.csv") == seconds
    (axes,) = times.times_picture(seconds).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [times.NAMES[name] for name in ("peft", "crowd", "full", "topk")]
    assert axes.get_xscale() == "linear" and {round(bar.get_width(), 1) for bar in axes.patches} >= {100.0, 10.0, 1.0}


def test_the_seconds_of_the_docs_are_those_of_their_picture(load):
    told, task = {}, ""
    for line in Path("docs/measured/alto.md").read_text().splitlines():
        cells = [cell.strip(" ¹") for cell in line.strip("|").split("|")]
        if len(cells) == 9 and cells[2].replace(",", "").isdigit():
            task = cells[0] or task
            told.setdefault(task, []).append(float(cells[2].replace(",", "")))
    times = load("grid_times").read_times(Path("docs/figures/alto-times.csv"))
    assert [list(of_task.values()) for of_task in times.values()] == list(told.values())


def test_geometric_mean(load):
    assert load("grid_numbers").geometric_mean([2.0, 8.0, 4.0]) == pytest.approx(4.0)


def test_sub_grids_hold_no_trial_twice_and_are_the_same_each_time(load):
    numbers, trials = load("grid_numbers"), {f"{k}": curve(1.0, 1.0, float(k)) for k in range(20)}
    drawn = numbers.sub_grids(trials, 8, 5, seed=1)
    assert [len(group) for group in drawn.values()] == [8] * 5
    assert {name: list(group) for name, group in drawn.items()} == {
        name: list(group) for name, group in numbers.sub_grids(trials, 8, 5, seed=1).items()
    }
    assert [len(group) for group in numbers.sub_grids(trials, 60, 2, seed=1).values()] == [20, 20]


def test_a_rule_that_ends_the_later_winner_has_its_regret_and_one_that_does_not_has_none(load, monkeypatch):
    numbers = load("grid_numbers")
    monkeypatch.setattr(numbers, "RULES", {"one": {"preset": "topk", "top_k": {"keep": 1}}, "none": {"preset": "none"}})
    groups = {"sums": {"early": curve(2.0, 1.5, 1.1), "late": curve(3.0, 2.0, 1.0)}}
    told = {(row["rule"], row["group"]): row for row in numbers.regrets(groups, size=2, draws=3, seed=0)}
    assert told["one", "sums"]["grid"]["regret_mean"] == pytest.approx(0.1)
    assert told["one", "all"]["sub_grids"]["regret_max"] == pytest.approx(0.1)
    assert told["one", "sums"]["grid"]["saved"] == pytest.approx(10 / 40)
    assert told["none", "all"]["grid"] == {**told["none", "all"]["grid"], "saved": 0.0, "regret_max": 0.0}


def test_a_trial_that_both_runs_end_is_compared_and_one_that_was_ended_early_is_not(load):
    page = load("grid_page")

    def arm(*losses, steps=10):
        trials = [
            SimpleNamespace(trial=f"{i}", best_loss=loss, steps=steps if i else 10, total_steps=10)
            for i, loss in enumerate(losses)
        ]
        best = min(trials, key=lambda one: one.best_loss)
        return page.Arm(1.0, 1, 1.0, None, SimpleNamespace(trials=trials, best_of=lambda task: best))

    told = page.repeat_table({"sums": {"full": arm(2.0, 4.0), "early": arm(2.1, 3.0), "paper": arm(2.0, 3.0, steps=4)}})
    assert "| sums | altojax, early exit | 2 | -10.00% | 15.00% | 25.00% | +5.00% |" in told
    assert "| sums | with the paper's rules | 1 | 0.00% | 0.00% | 0.00% | +0.00% |" in told


def test_curves_written_of_a_run_have_its_averages_and_its_rungs(load, tmp_path):
    rules = Rules.model_validate({"preset": "topk", "top_k": {"rank_by": "average"}})
    trials = made_up(rules, np.random.default_rng(4), 9)
    losses = {trial.name: np.full((3, len(trial.eval_steps)), 1.5 + trial.index) for trial in trials}
    folder = write_run(tmp_path / "run", rules, trials, *play(rules, trials, losses))
    numbers = load("grid_numbers")
    with Journal.read(folder) as journal:
        rows = numbers.curve_rows("task", read_record(journal))
    (tmp_path / "curves.csv.gz").write_bytes(numbers.curves_csv_gz(rows))
    recorded, run = read_curves(tmp_path / "curves.csv.gz")["task"], read_run(folder).groups["task"]
    averages = [[one.curve.more[average_name(0)] for one in group.values()] for group in (recorded, run)]
    assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(*averages, strict=True))
    assert {int(np.isfinite(one).sum()) for one in averages[0]} == {1, 2}, "at the rung, and at the end of those kept"
    schedules = [[one.schedule for one in group.values()] for group in (recorded, run)]
    assert rung_steps(rules, schedules[0]) == rung_steps(rules, schedules[1])


@pytest.fixture
def reproduce(load, called, tmp_path, monkeypatch, capsys):
    """Runs the script on four configurations of a model of two layers; gives its exit code and what it printed."""
    module = load("reproduce_alto")
    rows = [json.dumps({"prompt": f"{a}+{b}=", "completion": str(a + b)}) for a in range(6) for b in range(6)]
    (tmp_path / "rows").mkdir()
    for part in ("train", "test"):
        (tmp_path / "rows" / f"sums.{part}.jsonl").write_text("\n".join(rows) + "\n")
    python = tmp_path / "python"
    python.write_text(STUB.format(python=sys.executable))
    python.chmod(0o755)
    (tmp_path / "alto.yaml").write_text(f"""
output_dir: {tmp_path}/out
model: {{model_name_or_path: nowhere.gguf}}
search: {{learning_rate: [1.0e-3, 1.0e-2], lora_rank: [2], batch_size: [1, 2], train_samples: 8}}
slots: 4
keep_adapters: best
eval_samples: 0.25
tasks:
  - name: sums
    data: {{train: data/alto/sums.train.jsonl, max_length: 32, validation_samples: 6, chat_template: false}}
""")

    def run(*arguments):
        always = ("--tiny", "--data", f"{tmp_path}/rows", "--sample", "4", "--draws", "3", "--sub-grid", "3")
        return called(module, f"{tmp_path}/alto.yaml", *always, *arguments), capsys.readouterr()

    run.python = python
    return run


@pytest.mark.slow
def test_a_grid_is_tuned_once_compared_with_peft_and_its_curves_replayed(reproduce, tmp_path):
    given = ("--peft-python", str(reproduce.python), "--processes", "1", "4")
    code, told = reproduce("--parts", "full", "peft", "crowd", "regret", *given)
    assert code == 0, told.err
    out = tmp_path / "out"
    # 8 + 4 steps at each of two rates, at half a second; 4 imports once; 3 of set-up and evaluation for each of four.
    assert "| sums | PEFT, one at a time | 28 | 32 |" in told.out
    # Of four processes each has one configuration: 4 imports, 3 around 8 steps of a second.
    assert "| sums | 1 | 28 | 500, 500 | 18 | - |" in told.out
    assert "| sums | 4 | 15 | 1000, 1000 | 18 | - |" in told.out
    assert "| sums | PEFT, several processes at once | 15 | 32 | - | - | 1.9 | 1.0 | - |" in told.out
    times = (out / "alto-times.csv").read_text()
    assert "sums,peft,28\n" in times and "sums,crowd,15\n" in times
    assert "| sums | altojax, all at once |" in told.out and "| default | all |" in told.out
    assert (out / "page.md").read_text().strip() in told.out
    assert {path.name for path in (out / "full-sums" / "sums").iterdir()} == {"best"}
    (trials,) = read_curves(out / "curves.csv.gz").values()
    assert len(trials) == 4 and all(len(trial.steps) == 4 for trial in trials.values())
    pieces = json.loads((out / "full-sums.json").read_text())
    assert len(pieces["seconds"]) == 1 and math.isfinite(pieces["seconds"][0])
    rows = json.loads((out / "peft-sums.rows.json").read_text())
    job = json.loads((out / "peft-sums.job.json").read_text())
    assert len(rows["train"]) == 4 and len(rows["validation"]) == 6
    assert [(one["batch_size"], one["steps"]) for one in job["configurations"]] == [(1, 4), (2, 2)]
    for row in rows["train"]:
        learnt = [label for label in row["labels"] if label != -100]
        assert len(row["ids"]) == len(row["labels"]) and learnt == row["ids"][-len(learnt) :]
    reproduce.python.unlink()
    code, again = reproduce("--parts", "full", "peft", "crowd", "regret", *given)
    assert code == 0 and "best is" not in again.out
    assert len(json.loads((out / "full-sums.json").read_text())["seconds"]) == 1


def test_processes_of_peft_train_beside_one_another_and_say_how_fast(reproduce, reference_python, tmp_path):
    given = ("--peft-python", str(reference_python), "--processes", "2", "--window-s", "0.2")
    assert reproduce("--parts", "crowd", *given)[0] == 0
    told = json.loads((tmp_path / "out" / "crowd.json").read_text())
    (stage,) = told["stages"]
    assert (stage["processes"], stage["data"]) == (2, "sums") and told["imports_s"] > 0
    assert stage["setup_s"] > 0 and stage["evaluation_s"] > 0
    assert [one["batch_size"] for one in stage["steps"]] == [1, 2]
    for one in stage["steps"]:  # two processes, each for a fifth of a second or its one step that took longer
        assert one["steps"] >= 2 and one["steps"] * one["step_s"] >= 0.9 * 2 * 0.2


def test_an_unknown_data_set_is_one_line(reproduce):
    code, told = reproduce("--tasks", "sum")
    assert code == 2
    assert (
        told.err.strip() == "reproduce_alto: error: --tasks: given 'sum', expected some of sums (did you mean 'sums'?)"
    )
