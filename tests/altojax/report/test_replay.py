"""Replays: hand-computed answers, agreement with a run that asks evaluation by evaluation, and files that are wrong."""

import gzip
import json
import math

import numpy as np
import pytest

from altojax.early_exit.curve import Curve
from altojax.early_exit.replay import RecordedTrial, ReplayedGroup, replay, summary
from altojax.early_exit.rules import Rules
from altojax.report.curve_files import read_curves
from altojax.report.replay import REPLAY, run_replay
from jaxrun.config.cli import main
from jaxrun.process.errors import UserError

HEADER = "group,trial,step,max_steps,train_loss,val_loss"


def write(path, rows, header=HEADER):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def rows_of(group, trials, max_steps):
    return [
        (group, trial, step, max_steps, 1.0, loss)
        for trial, losses in trials.items()
        for step, loss in enumerate(losses, start=1)
    ]


def trial(val, train=None, max_steps=None, steps=None):
    steps = np.arange(1.0, len(val) + 1) if steps is None else np.asarray(steps, float)
    most = max_steps or int(steps[-1])
    train = np.ones(len(val)) if train is None else np.asarray(train, float)
    return RecordedTrial(steps, most, Curve(steps / most, train, np.asarray(val, float)))


def test_a_file_worked_out_by_hand(tmp_path):
    # Ten steps, one rung at 20 %: the best two of eight go on, as do no others.
    early = {f"x{k}": [3.0 + k] * 10 for k in range(5)}
    first = {
        "good": [2.0, 1.0, *[0.9] * 7, 0.8],
        "fair": [2.0, 1.5] + [1.4] * 8,
        **early,
        "late": [9.0] * 5 + [0.4] * 5,
    }
    second = {"good": [2.0] * 9 + [0.5], "fair": [2.0] * 10, **early, "late": [9.0] * 10}
    path = write(tmp_path / "curves.csv", rows_of("g1", first, 10) + rows_of("g2", second, 10))
    rules = Rules.model_validate({"preset": "none", "underperforming": {"at": [0.2], "keep": [0.25]}})
    got = summary(replay(rules, read_curves(path)))
    assert got["saved"] == pytest.approx(1 - (2 * 10 + 6 * 2) / 80)
    # g1 gives 0.8 where 0.4 was to be had; g2 gives its best.
    assert got["regret_mean"] == pytest.approx(0.5)
    assert got["regret_p95"] == pytest.approx(0.95)
    assert got["regret_max"] == pytest.approx(1.0)
    assert got["best_kept"] == 0.5


def test_the_result_is_the_best_checkpoint_and_not_the_last():
    group = {"g": {"a": trial([1.0, 0.5, 0.9, 0.9, 0.9, 0.9])}}
    stalled = Rules.model_validate({"preset": "none", "stalled": {"patience": 2}})
    assert replay(stalled, group) == [ReplayedGroup(4.0, 6.0, 0.0)]


def test_a_trial_that_ends_before_its_best_point_is_not_kept():
    group = {"g": {"a": trial([1.0, 1.0, 1.0, 0.5]), "b": trial([2.0] * 4)}}
    outcomes = replay(Rules.model_validate({"preset": "none", "stalled": {"patience": 2}}), group)
    assert outcomes == [ReplayedGroup(6.0, 8.0, 1.0)]
    assert summary(outcomes)["best_kept"] == 0.0


def test_diverged_trials_cost_the_full_grid_all_steps_in_the_file():
    group = {"g": {"a": trial([1.0] * 10), "b": trial([1.0] + [np.nan] * 9)}}
    assert replay(Rules.model_validate({"preset": "none", "not_finite": {}}), group) == [ReplayedGroup(14.0, 20.0, 0.0)]


def test_groups_without_any_finite_loss_count_for_savings_alone():
    groups = {"dead": {"a": trial([np.nan] * 10)}, "alive": {"a": trial([1.0] * 10)}}
    got = summary(replay(Rules.model_validate({"preset": "none", "not_finite": {}}), groups))
    assert got["saved"] == pytest.approx(7 / 20)
    assert got["best_kept"] == 1.0


def test_regret_of_a_negative_or_zero_best_loss():
    rules = Rules.model_validate({"preset": "none", "top_k": {"steps": 0.5, "keep": 1}})
    negative = {"g": {"a": trial([-1.0] * 4), "b": trial([0.0, 0.0, 0.0, -4.0])}}
    assert replay(rules, negative)[0].regret == pytest.approx(0.75)
    zero = {"g": {"a": trial([1.0] * 4), "b": trial([2.0, 2.0, 2.0, 0.0])}}
    assert replay(rules, zero)[0].regret == math.inf
    assert replay(Rules(preset="none"), zero)[0].regret == 0.0


def test_the_order_of_rows_and_of_groups_decides_nothing(tmp_path):
    random = np.random.default_rng(3)
    rows = []
    for group in "ab":
        trials = {f"t{k}": np.round(random.uniform(0.5, 2, 12), 2) for k in range(6)}
        rows += rows_of(group, trials, 12)
    first = run_replay(write(tmp_path / "a.csv", rows))
    random.shuffle(rows)
    assert run_replay(write(tmp_path / "b.csv", rows)) == first


def test_the_verb_writes_json_and_reads_gzip(tmp_path, capsys):
    plain = write(tmp_path / "curves.csv", rows_of("g", {"a": [2, 1, 1, 1], "b": [3, 3, "nan", ""]}, 4))
    packed = tmp_path / "curves.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    out = tmp_path / "replay.json"
    assert main("altojax", {"replay": REPLAY}, ["replay", str(packed), "rules=none,halving", f"out={out}"]) == 0
    rows = json.loads(out.read_text())
    assert [row["rule"] for row in rows] == ["none", "halving"]
    assert set(rows[0]) == {"rule", "saved", "regret_mean", "regret_p95", "regret_max", "best_kept"}
    assert rows[0]["saved"] == 0.0 and rows[1]["saved"] > 0.0
    shown = capsys.readouterr().out
    assert "halving" in shown and "best kept" in shown


GOOD = rows_of("g", {"a": [2.0, 1.0]}, 2)


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        (HEADER.replace("val_loss", "val_los"), GOOD, "no column 'val_loss'"),
        (HEADER, [], "no rows"),
        (HEADER, [("g", "a", 1, 2, 1.0, "high")], "val_loss"),
        (HEADER, [("g", "a", "", 2, 1.0, 1.0)], "'step' has empty cells"),
        (HEADER, [("g", "a", 3, 2, 1.0, 1.0)], "step 3, expected 0 to max_steps = 2"),
        (HEADER, [("g", "a", -1, 2, 1.0, 1.0)], "step -1"),
        (HEADER, [("g", "a", 1, 0, 1.0, 1.0)], "max_steps is 0"),
        (HEADER, [*GOOD, ("g", "a", 3, 3, 1.0, 1.0)], "max_steps is 2, 3"),
        (HEADER, [*GOOD, GOOD[0]], "step 1 stands there twice"),
        (HEADER, [("g", "a", 1)], "columns"),
        (HEADER, [("g", "a", 1, 2, "", 1.0), ("g", "a", 2, 2, "nan", 1.0)], "columns={train_loss: val_loss}"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_where(tmp_path, header, rows, said):
    path = write(tmp_path / "curves.csv", rows, header)
    with pytest.raises(UserError) as error:
        run_replay(path)
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_preset_that_stands_for_another_is_said(tmp_path):
    said = []
    run_replay(write(tmp_path / "raw.csv", GOOD), ["default", "paper"], tell=said.append)
    assert said == ["default is cautious here: these curves have no average_val_loss"]
    averaged = write(tmp_path / "averaged.csv", [(*row, 1.0) for row in GOOD], f"{HEADER},average_val_loss")
    run_replay(averaged, ["default", "paper"], tell=said.append)
    assert len(said) == 1


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    for name in ("empty.csv", "."):
        with pytest.raises(UserError):
            run_replay(tmp_path / name)
    (tmp_path / "mine.yaml").write_text("output_dir: runs/mine")
    with pytest.raises(UserError, match=r"mine.yaml: a config, expected the output_dir of its run, or a CSV"):
        run_replay(tmp_path / "mine.yaml")
    write(tmp_path / "curves.csv", GOOD)
    with pytest.raises(UserError, match=r"no such file \(did you mean 'curves.csv'\?\)"):
        run_replay(tmp_path / "curve.csv")


def test_unknown_rules_and_keys_name_the_nearest(tmp_path, capsys):
    path = write(tmp_path / "curves.csv", GOOD)
    for argument, said in (
        ("rules=halvin", "did you mean 'halving'?"),
        ("rules=[]", "no rules given"),
        ("outt=x", "did you mean 'out'?"),
    ):
        assert main("altojax", {"replay": REPLAY}, ["replay", str(path), argument]) == 2
        assert said in capsys.readouterr().err


def test_without_averages_the_default_loses_next_to_nothing_on_recorded_grids_and_little_on_grids_drawn_from_them():
    recorded = read_curves("docs/figures/alto-curves.csv.gz")
    assert [len(trials) for trials in recorded.values()] == [60] * 6
    whole = summary(replay(Rules(), recorded))
    assert whole["regret_max"] < 0.005 and 0.33 < whole["saved"] < 0.4, "early-exit.md: a third"
    assert 0.63 < summary(replay(Rules(preset="eager"), recorded))["saved"] < 0.75, "early-exit.md: two thirds"
    first = {name: trials for name, trials in recorded.items() if name.endswith("-0")}
    assert summary(replay(Rules(), first))["regret_max"] == 0.0
    random, drawn = np.random.default_rng(5), {}
    for task, trials in recorded.items():
        for k in range(40):
            names = random.choice(sorted(trials), 16, replace=False)
            drawn[f"{task} {k}"] = {name: trials[name] for name in names}
    parts = summary(replay(Rules(), drawn))
    assert parts["regret_mean"] < 0.005 and parts["regret_max"] < 0.02 and parts["saved"] > 0.25


def test_by_averages_the_default_saves_two_thirds_and_its_result_is_next_to_the_best():
    recorded = read_curves("docs/figures/averaged-curves.csv.gz")
    assert [len(trials) for trials in recorded.values()] == [60] * 9
    whole = summary(replay(Rules(), recorded))
    assert whole["regret_max"] < 0.006 and 0.63 < whole["saved"] < 0.68, "README: 0.6 %, two thirds"
    assert whole["averages_gain"] > 0.04, "averages.md"
