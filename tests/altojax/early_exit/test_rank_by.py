"""Every comparing rule can rank by the averaged adapter, and says so where curves have no such loss."""

import re

import numpy as np
import pytest

from altojax.cli import main
from altojax.early_exit.curve import AVERAGE, Curve, average_name
from altojax.early_exit.replay import RecordedTrial, replay, summary
from altojax.early_exit.rule import Comparison
from altojax.early_exit.rules import REGISTERED, Rules
from altojax.report.curve_files import read_curves
from altojax.report.replay import run_replay
from jaxrun.process.errors import UserError

COMPARING = [name for name, rule in REGISTERED.items() if issubclass(rule, Comparison)]
NUMBERS = {
    "underperforming": {"at": [0.5], "keep": [0.5]},
    "top_k": {"steps": 0.5, "keep": 2},
    "halving": {"first": 0.5},
}


def of(name, rank_by):
    return Rules.model_validate({"preset": "none", name: {**NUMBERS.get(name, {}), "rank_by": rank_by}})


def curve(val, average):
    return Curve(np.array([0.25, 0.5]), np.ones(2), np.array(val, float), {AVERAGE: np.array(average, float)})


# Which two of four are ended depends on what they are ranked by.
FOUR = {
    "low before": curve([1.0, 3.0], [np.nan, 3.0]),
    "low now": curve([4.0, 1.5], [np.nan, 4.0]),
    "low on average": curve([4.1, 3.5], [np.nan, 1.0]),
    "lower on average": curve([4.2, 3.6], [np.nan, 0.9]),
}


@pytest.mark.parametrize("name", COMPARING)
def test_each_comparing_rule_ranks_by_what_it_is_told(name):
    ended = {by: set(of(name, by).at_rung(0, FOUR)) for by in ("best", "last", "average")}
    assert ended["average"] == {"low before", "low now"}
    if name != "median":
        assert ended["last"] == {"low on average", "lower on average"}
        assert ended["best"] == ended["last"]
        assert (
            of(name, "best").at_rung(0, FOUR | {"low now": curve([4.0, 3.7], [4, 4])}).keys() & {"low before"} == set()
        )
    detail = of(name, "average").at_rung(0, FOUR)["low now"].detail
    assert detail.startswith("averaged adapter's validation loss 4")


@pytest.mark.parametrize("name", COMPARING)
def test_a_loss_that_is_not_finite_ends_a_trial_whichever_of_the_two_it_is(name):
    broken = {"raw": curve([1, np.nan], [1, 0.1]), "average": curve([1, 0.1], [1, np.inf])}
    verdicts = of(name, "average").at_rung(0, FOUR | broken)
    assert {verdicts[one].reason for one in broken} == {"not finite"}
    assert "average" not in of(name, "last").at_rung(0, FOUR | broken)


@pytest.mark.parametrize("name", COMPARING)
def test_the_need_of_an_average_is_of_the_rule_as_it_is_set(name):
    assert of(name, "average").lacking(set()) == {AVERAGE: name}
    assert of(name, "last").lacking(set()) == {} and of(name, "average").lacking({AVERAGE}) == {}


def test_margins_for_noise_and_for_falling_read_the_average_too():
    down = np.linspace(2, 1, 10)
    bouncing = down + np.tile([0.3, -0.3], 5)
    curves = {
        f"{k}": Curve(np.arange(1, 11) / 20, down, bouncing + k * 0.1, {AVERAGE: down + k * 0.1}) for k in range(6)
    }
    numbers = {"at": [0.5], "keep": [0.3], "noise": 3.0, "span": 0.4}
    kept = {
        by: 6 - len(Rules.model_validate({"preset": "none", "underperforming": {**numbers, "rank_by": by}})
                    .at_rung(0, curves))
        for by in ("last", "average")
    }  # fmt: skip
    assert kept == {"last": 4, "average": 2}, "an average does not bounce"


def trial(name, averages):
    steps = np.array([1.0, 2.0, 3.0, 4.0])
    more = {} if averages is None else {AVERAGE: np.array(averages, float)}
    return {name: RecordedTrial(steps, 4, Curve(steps / 4, np.ones(4), np.ones(4), more))}


def averaged(val, averages):
    steps = np.arange(1.0, len(val) + 1)
    return RecordedTrial(steps, len(val), Curve(steps / len(val), np.ones(len(val)), np.array(val), {
        AVERAGE: np.array(averages)
    }))  # fmt: skip


def test_rules_that_rank_by_averages_are_judged_by_results_that_may_be_averages():
    # Averages are lower than all raw losses, also between rungs, where no run measures them.
    trials = {
        "first": averaged([2.0, 2.0, 2.0, 1.0], [0.1, 0.8, 0.1, 0.9]),
        "second": averaged([2.0, 2.0, 2.0, 2.0], [0.1, 0.9, 0.1, 0.6]),
    }
    keep_one = {"at": [0.5], "keep": [0.5], "at_least": 1}
    for by, found in (("average", (0.8, 0.6, 1.0)), ("last", (1.0, 1.0, None))):
        rules = Rules.model_validate({"preset": "none", "underperforming": {**keep_one, "rank_by": by, "waits": False}})
        [outcome] = replay(rules, {"g": trials})
        ours, best, raw = found
        assert (outcome.run_steps, outcome.full_steps) == (6, 8)
        assert outcome.regret == pytest.approx((ours - best) / best)
        assert outcome.gain == (None if raw is None else pytest.approx((raw - best) / raw))
        assert ("averages_gain" in summary([outcome])) == (by == "average")


def test_what_averages_gain_has_a_column_where_curves_have_any(tmp_path, capsys):
    path = tmp_path / "curves.csv"
    header, rows = "group,trial,step,max_steps,train_loss,val_loss", ["g,a,1,2,1,1", "g,a,2,2,1,1"]
    for average, shown in (("", False), (",0.75", True)):
        name = f",{AVERAGE}" if average else ""
        path.write_text("\n".join([header + name, *(row + average for row in rows)]) + "\n")
        assert main(["replay", str(path)]) == 0
        out = capsys.readouterr().out
        assert ("averages gain" in out, "25.00%" in out) == (shown, shown)


def test_curves_without_averages_are_refused_in_one_line():
    rules = of("top_k", "average")
    with pytest.raises(UserError, match=f"early_exit.top_k needs '{AVERAGE}' of every trial"):
        replay(rules, {"g": trial("a", None)})
    with pytest.raises(UserError, match=f"compares by {AVERAGE}, which b at step 2 lacks, expected it at every rung"):
        replay(rules, {"g": trial("a", [1] * 4) | trial("b", [1, np.nan, 1, 1])})
    assert replay(rules, {"g": trial("a", [np.nan, 1, np.nan, np.nan])})[0].regret == 0.0


def test_columns_of_averages_are_read_by_their_names_or_those_of_the_file(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text("group,trial,step,max_steps,val_loss,average8_val_loss,note\ng,a,1,2,1,,x\ng,a,2,2,1,0.5,y\n")
    columns = {"train_loss": "val_loss", AVERAGE: "average8_val_loss"}
    ((one,),) = ([*group.values()] for group in read_curves(path, columns).values())
    assert np.isnan(one.curve.more[AVERAGE][0]) and one.curve.more[AVERAGE][1] == 0.5
    assert list(one.curve.train_loss) == [1.0, 1.0] and "note" not in one.curve.more
    path.write_text("group,trial,step,max_steps,train_loss,val_loss,average_val_loss_2\ng,a,1,1,1,1,2\n")
    assert read_curves(path)["g"]["a"].curve.more[average_name(1)] == [2.0]
    for wrong, said in (
        ({AVERAGE: "averag_val_loss_2"}, "no column 'averag_val_loss_2' for average_val_loss (did you mean"),
        ({"averag_val_loss": "val_loss"}, "columns: given 'averag_val_loss', expected some of group"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            read_curves(path, wrong)
    path.write_text("group,trial,step,max_steps,train_loss,val_loss,average_val_loss\ng,a,1,1,1,1,high\n")
    with pytest.raises(UserError, match=r"CSV column #6: .* invalid value 'high'"):
        read_curves(path)


def test_the_verb_takes_columns_and_refuses_them_for_a_run(tmp_path, capsys):
    path = tmp_path / "curves.csv"
    path.write_text("group,trial,step,max_steps,val_loss\ng,a,1,2,1\ng,a,2,2,1\n")
    assert main(["replay", str(path), "columns={train_loss: val_loss}", "rules=halving"]) == 0
    assert "halving" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"columns: given for .*, a run's folder, expected a CSV"):
        run_replay(tmp_path, columns={"train_loss": "val_loss"})


def test_the_default_without_averages_is_the_cautious_one_unless_it_was_told_to_rank_by_them():
    default, numbers = Rules(), Rules(preset="cautious").comparison
    assert default.for_curves({AVERAGE}) is default and default.comparison.rank_by == "average"
    assert default.for_curves(set()).comparison == numbers and not default.for_curves(set()).model_fields_set
    changed = Rules.model_validate({"underperforming": {"noise": 3.0}}).for_curves(set()).comparison
    assert (changed.noise, changed.at) == (3.0, numbers.at)
    told = Rules.model_validate({"underperforming": {"rank_by": "average"}})
    assert told.for_curves(set()).lacking(set()) == {AVERAGE: "underperforming"}
