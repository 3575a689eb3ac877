"""The early-exit rules on hand-made curves: when each fires, when it must not, and what none may ever do."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altojax.early_exit import signals
from altojax.early_exit.comparisons.underperforming import scatter
from altojax.early_exit.curve import AVERAGE, Curve
from altojax.early_exit.presets import PRESETS
from altojax.early_exit.rule import Verdict
from altojax.early_exit.rules import Rules
from jaxrun.config.config import check_config, dump_config
from jaxrun.config.strict_yaml import parse_yaml
from jaxrun.process.errors import UserError

COMPARING = ("default", "eager", "paper", "halving", "median", "topk")


def curve(val, train=None, schedule=None):
    val = np.asarray(val, float)
    n = len(val)
    train = np.ones(n) if train is None else np.asarray(train, float)
    return Curve(np.arange(1, n + 1) / (schedule or n), train, val, {AVERAGE: val})


def only(**rules):
    return Rules.model_validate({"preset": "none", **rules})


def ended(rules, curves, index=0):
    return set(
        rules.at_rung(
            index, {name: value if isinstance(value, Curve) else curve(value) for name, value in curves.items()}
        )
    )


def reason(verdict: Verdict | None) -> str:
    return verdict.reason if verdict else ""


# --- rules that judge one trial


def test_three_evaluations_in_a_row_that_are_not_finite_end_a_trial():
    rules = only(not_finite={})
    assert rules.ends_broken
    assert not only().ends_broken
    assert rules.after_evaluation(curve([1, np.nan, np.nan])) is None
    assert reason(rules.after_evaluation(curve([1, np.nan, np.inf, -np.inf]))) == "not finite"
    assert rules.after_evaluation(curve([1, np.nan, np.nan, 1, np.nan])) is None
    assert reason(rules.after_evaluation(curve([1, 1, 1], train=[np.nan] * 3))) == "not finite"


def test_diverging_needs_both_losses_to_rise_and_twice_in_a_row():
    rules = only(diverging={}, smoothing=1.0)
    up, down = [1.0, 1.1, 1.2], [1.0, 0.9, 0.8]
    assert reason(rules.after_evaluation(curve(up, up))) == "diverging"
    assert rules.after_evaluation(curve(up[:2], up[:2])) is None
    assert rules.after_evaluation(curve(up, down)) is None
    assert rules.after_evaluation(curve(down, up)) is None
    assert rules.after_evaluation(curve([1.0, 1.1, 1.0, 1.1], [1.0, 1.1, 1.0, 1.1])) is None


def test_diverging_fires_at_its_slope_and_not_below():
    rules = only(diverging={"slope": 0.25}, smoothing=1.0)
    assert rules.after_evaluation(curve([1.0, 1.25, 1.5], [1.0, 1.25, 1.5])) is not None
    assert rules.after_evaluation(curve([1.0, 1.25, 1.4375], [1.0, 1.25, 1.4375])) is None


def test_diverging_reads_the_smoothed_training_loss():
    spike = [1.0, 0.5, 0.6, 0.7]
    assert only(diverging={}, smoothing=1.0).after_evaluation(curve([1, 1.1, 1.2, 1.3], spike)) is not None
    assert only(diverging={}, smoothing=0.1).after_evaluation(curve([1, 1.1, 1.2, 1.3], spike)) is None


def test_blown_up_needs_to_be_above_its_best_and_its_start():
    rules = only(blown_up={}, smoothing=1.0)
    assert reason(rules.after_evaluation(curve([1] * 5, [2.0, 1.0, 2.5, 2.5, 2.5]))) == "diverging"
    assert rules.after_evaluation(curve([1] * 5, [2.0, 1.0, 1.9, 1.9, 1.9])) is None, "not above where it began"
    assert rules.after_evaluation(curve([1] * 5, [2.0, 1.8, 2.6, 2.6, 2.6])) is None, "not above 1.5 times its best"
    assert rules.after_evaluation(curve([1] * 5, [2.0, 1.0, 2.5, 1.0, 2.5])) is None, "not three in a row"
    assert rules.after_evaluation(curve([1] * 4, [-2.0, -0.9, -0.9, -0.9])) is not None
    assert rules.after_evaluation(curve([1] * 4, [-2.0, -1.1, -1.1, -1.1])) is None


def test_overfitting_fires_above_the_gap_and_not_at_it():
    rules = only(overfitting={"gap": 0.25}, smoothing=1.0)
    assert rules.after_evaluation(curve([1.25, 1.25], [1.0, 1.0])) is None
    assert reason(rules.after_evaluation(curve([1.26, 1.26], [1.0, 1.0]))) == "overfitting"
    assert rules.after_evaluation(curve([1.26, 1.25, 1.26], [1.0, 1.0, 1.0])) is None


def test_stalled_counts_evaluations_without_a_new_best():
    rules = only(stalled={"patience": 3})
    assert rules.after_evaluation(curve([1.0, 1.1, 1.0])) is None
    assert reason(rules.after_evaluation(curve([1.0, 1.1, 1.0, 1.0]))) == "stalled"
    assert rules.after_evaluation(curve([1.0, 1.1, 1.0, 0.99])) is None
    assert rules.after_evaluation(curve([np.nan, np.nan, 5.0])) is None


def test_a_verdict_says_what_happened_in_numbers():
    verdict = only(overfitting={}).after_evaluation(curve([1.5, 1.5], [1.0, 1.0]))
    assert verdict is not None
    assert "1.5" in verdict.detail and "10%" in verdict.detail
    detail = only(top_k={"keep": 1}).at_rung(0, {"a": curve([1.25]), "b": curve([2.5])})["b"].detail
    assert "2.5" in detail and "2 of 2" in detail and "1.25" in detail


# --- rules that compare trials


def test_the_best_quarter_rounded_up_is_kept():
    rules = only(underperforming={"keep": [0.25]})
    assert ended(rules, {name: [loss] for name, loss in zip("abcde", [5, 1, 4, 2, 3], strict=True)}) == set("ace")


def test_a_share_that_is_whole_keeps_no_more_than_it_says():
    rules = only(underperforming={"keep": [0.07]})
    assert len(ended(rules, {f"{i:03}": [float(i)] for i in range(100)})) == 93


def test_trials_that_are_not_finite_count_as_living_and_are_ended():
    rules = only(underperforming={"keep": [0.5]})
    curves = {"a": [1.0], "b": [2.0], "c": [3.0], "d": [0.1, np.nan]}
    verdicts = rules.at_rung(0, {name: curve(loss) for name, loss in curves.items()})
    assert set(verdicts) == {"c", "d"}
    assert (verdicts["c"].reason, verdicts["d"].reason) == ("underperforming", "not finite")
    assert ended(rules, {"a": [np.nan], "b": [np.inf]}) == {"a", "b"}


def test_equal_losses_rank_by_name():
    for rules in (only(underperforming={"keep": [0.5]}), only(halving={}), only(top_k={"keep": 2})):
        for order in ("abcd", "dcba", "cadb"):
            assert ended(rules, {name: [1.0] for name in order}) == {"c", "d"}


def test_the_best_loss_so_far_may_rank_instead_of_the_last():
    curves = {"risen": [1.0, 3.0], "steady": [2.0, 2.0]}
    assert ended(only(underperforming={"keep": [0.5], "rank_by": "best"}), curves) == {"steady"}
    assert ended(only(underperforming={"keep": [0.5], "rank_by": "last"}), curves) == {"risen"}


def test_a_falling_trial_is_kept_beside_the_best():
    curves = {
        "best": curve([1.0, 1.0, 1.0], schedule=10),
        "falling": curve([9.0, 7.0, 5.0], schedule=10),
        "flat": curve([2.0, 2.0, 2.0], schedule=10),
        "rising": curve([3.0, 3.1, 3.2], schedule=10),
    }
    assert ended(only(underperforming={"keep": [0.25]}), curves) == {"falling", "flat", "rising"}
    falling = {"keep": [0.25], "falling": 0.25, "span": 0.9, "horizon": 0.5}
    assert ended(only(underperforming=falling), curves) == {"flat", "rising"}


def test_what_cannot_be_told_from_the_best_for_noise_is_kept():
    wave = np.array([0.0, 0.3, 0.0, 0.3, 0.0])
    curves = {
        "a": curve(1.0 + wave, schedule=50),
        "b": curve(1.5 + wave, schedule=50),
        "c": curve(9.0 + wave, schedule=50),
    }
    noise = scatter(curves["a"], span=0.9)
    assert noise == pytest.approx(math.sqrt(0.36 / 6))
    for times, gone in ((0.0, {"b", "c"}), (0.49 / noise, {"b", "c"}), (0.51 / noise, {"c"})):
        assert ended(only(underperforming={"keep": [0.3], "noise": times, "span": 0.9}), curves) == gone


def test_noise_keeps_at_most_as_many_again():
    wave = np.array([0.0, 0.3, 0.0, 0.3, 0.0])
    alike = {f"{k}": curve(1.0 + k / 1000 + wave, schedule=50) for k in range(8)}
    rules = only(underperforming={"keep": [0.25], "noise": 9.0, "span": 0.9})
    assert ended(rules, alike) == {"4", "5", "6", "7"}


def test_at_least_so_many_are_kept():
    curves = {"a": [1.0], "b": [2.0], "c": [3.0]}
    assert ended(only(underperforming={"keep": [0.1], "at_least": 2}), curves) == {"c"}
    assert ended(only(underperforming={"keep": [0.1], "at_least": 9}), curves) == set()


def test_halving_keeps_one_in_eta_at_each_rung():
    rules = only(halving={"first": 0.1, "eta": 3})
    assert rules.rungs == pytest.approx((0.1, 0.3, 0.9))
    assert ended(rules, {f"{i}": [float(i)] for i in range(9)}, 2) == {f"{i}" for i in range(3, 9)}


def test_median_compares_the_best_loss_with_the_peers_mean_losses():
    rules = only(median={})
    curves = {
        "a": [4.0, 2.0],
        "b": [6.0, 2.0],
        "c": [9.0, 4.5],
        "d": [5.0, 4.9],
    }  # means 3, 4, 6.75, 4.95: median 4.475
    assert ended(rules, curves) == {"c", "d"}
    assert ended(rules, {**curves, "c": [9.0, 4.475]}) == {"d"}


def test_top_k_keeps_the_few_best():
    assert ended(only(top_k={"steps": 100, "keep": 2}), {"a": [3.0], "b": [1.0], "c": [2.0]}) == {"a"}


# --- laws, for any curves

LOSS = st.one_of(st.floats(0.01, 10), st.sampled_from([np.nan, np.inf, 1.0]))
CURVES = st.integers(1, 12).flatmap(
    lambda n: st.dictionaries(
        st.text("abcdef", min_size=1, max_size=3),
        st.lists(LOSS, min_size=n, max_size=n).map(curve),
        min_size=1,
        max_size=9,
    )
)


@settings(max_examples=60, deadline=None)
@given(curves=CURVES, preset=st.sampled_from(COMPARING))
def test_a_rung_ends_only_living_trials_and_never_the_best(curves, preset):
    rules = Rules(preset=preset)
    verdicts = rules.at_rung(0, curves)
    assert set(verdicts) <= set(curves)
    finite = {name: signals.last_loss(c) for name, c in curves.items() if np.isfinite(signals.last_loss(c))}
    assert set(curves) - set(finite) <= set(verdicts)
    if finite:
        by_best = preset in ("cautious", "eager", "median")
        rank = {name: signals.best_loss(curves[name]) if by_best else loss for name, loss in finite.items()}
        assert signals.ranking(rank)[0] not in verdicts


@settings(max_examples=40, deadline=None)
@given(curves=CURVES, preset=st.sampled_from(COMPARING), seed=st.integers(0, 99))
def test_the_order_of_trials_decides_nothing(curves, preset, seed):
    names = list(curves)
    np.random.default_rng(seed).shuffle(names)
    rules = Rules(preset=preset)
    assert rules.at_rung(0, curves) == rules.at_rung(0, {name: curves[name] for name in names})


@settings(max_examples=40, deadline=None)
@given(curves=CURVES, preset=st.sampled_from(COMPARING), power=st.integers(-8, 8))
def test_comparisons_do_not_depend_on_the_unit_of_the_loss(curves, preset, power):
    rules, unit = Rules(preset=preset), 2.0**power
    scaled = {
        name: curve(unit * c.val_loss, unit * c.train_loss, schedule=len(c.val_loss)) for name, c in curves.items()
    }
    assert set(rules.at_rung(0, curves)) == set(rules.at_rung(0, scaled))


@settings(max_examples=40, deadline=None)
@given(losses=st.lists(st.tuples(LOSS, LOSS), min_size=1, max_size=12), power=st.integers(-8, 8))
def test_relative_alarms_do_not_depend_on_the_unit_of_the_loss(losses, power):
    rules = only(not_finite={}, blown_up={}, overfitting={}, stalled={})
    train, val = (np.array(column) for column in zip(*losses, strict=True))
    unit, fraction = 2.0**power, np.arange(1, len(losses) + 1) / len(losses)
    first, scaled = rules.first_alarms([Curve(fraction, train, val), Curve(fraction, unit * train, unit * val)])
    assert first == scaled


@settings(max_examples=40, deadline=None)
@given(
    losses=st.lists(st.tuples(LOSS, LOSS), min_size=1, max_size=14),
    window=st.integers(2, 4),
    a=st.sampled_from([0.3, 1.0]),
)
def test_the_first_alarm_of_whole_curves_is_that_of_evaluation_after_evaluation(losses, window, a):
    rules = only(
        not_finite={"patience": 2},
        diverging={"window": window},
        blown_up={"patience": 2},
        overfitting={"gap": 0.5},
        stalled={"patience": 4},
        smoothing=a,
    )
    whole = curve(*reversed(list(zip(*losses, strict=True))))
    [first] = rules.first_alarms([whole])
    asked = (rules.after_evaluation(whole.first(n)) for n in range(1, len(losses) + 1))
    assert first == next((n for n, verdict in enumerate(asked) if verdict is not None), len(losses))


@settings(max_examples=30, deadline=None)
@given(curves=CURVES)
def test_the_preset_none_ends_nobody(curves):
    rules = Rules(preset="none")
    assert rules.rungs == ()
    assert rules.at_rung(0, curves) == {}
    assert all(rules.after_evaluation(c) is None for c in curves.values())


# --- config


def test_the_paper_preset_has_the_papers_numbers():
    rules = Rules(preset="paper")
    assert (rules.diverging.window, rules.diverging.slope, rules.diverging.patience) == (2, 0.001, 2)
    assert (rules.overfitting.gap, rules.overfitting.patience) == (0.1, 2)
    assert (rules.underperforming.at, rules.underperforming.keep) == ((0.05,), (0.25,))
    assert (rules.underperforming.rank_by, rules.underperforming.falling, rules.underperforming.noise) == ("last", 0, 0)
    assert rules.diverging.enabled and rules.overfitting.enabled and rules.underperforming.enabled
    assert not (rules.blown_up.enabled or rules.stalled.enabled)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_survives_being_written_and_read(preset):
    rules = Rules.model_validate({"preset": preset})
    assert check_config(Rules, parse_yaml(dump_config(rules), "x"), "x") == rules


def test_what_stands_beside_a_preset_replaces_single_numbers():
    given = {"preset": "paper", "overfitting": {"gap": 0.2}, "stalled": {}, "diverging": False, "smoothing": 0.9}
    rules = check_config(Rules, given, "x")
    assert (rules.overfitting.gap, rules.overfitting.patience, rules.overfitting.enabled) == (0.2, 2, True)
    assert rules.stalled.enabled and not rules.diverging.enabled and rules.underperforming.enabled
    assert rules.smoothing == 0.9
    assert not check_config(Rules, {"overfitting": {"gap": 0.2, "enabled": False}}, "x").overfitting.enabled
    assert check_config(Rules, {}, "x") == Rules() == Rules(preset="default")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"preset": "papr"}, "(did you mean 'paper'?)"),
        ({"overfiting": {"gap": 1}}, "(did you mean 'overfitting'?)"),
        ({"median": True}, "all compare trials, expected one"),
        ({"underperforming": {"at": [0.2, 0.1], "keep": [0.5, 0.5]}}, "do not ascend"),
        ({"median": {"at": [0.2, 0.2]}, "underperforming": False}, "do not ascend"),
        ({"underperforming": {"at": [0.2, 0.4]}}, "one for each rung"),
        ({"underperforming": {"at": [0.2, "x"]}}, "underperforming.at.1"),
        ({"underperforming": {"keep": [1.5]}}, "less than 1"),
        ({"smoothing": 0}, "smoothing"),
        ({"overfitting": 3}, "a section of keys"),
        ({"preset": ["paper"]}, "preset"),
    ],
)
def test_a_wrong_config_is_one_line_that_says_where(given, said):
    with pytest.raises(UserError) as error:
        check_config(Rules, given, "x.yaml")
    assert str(error.value).startswith("x.yaml: ") and said in str(error.value) and "\n" not in str(error.value)
