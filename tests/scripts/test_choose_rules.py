"""Rules are chosen by what they lose on grids of which none is judged by its own."""

import numpy as np
import pytest

from altojax.early_exit.curve import AVERAGE
from altojax.early_exit.presets import PRESETS
from altojax.early_exit.replay import replay
from altojax.early_exit.rules import Rules
from altojax.report.curve_files import read_curves

CURVES = "docs/figures/averaged-curves.csv.gz"
BY_AVERAGE = {
    "underperforming": {"rank_by": "average", "at": (0.05, 0.3), "keep": (0.4, 0.5), "falling": 0.0, "noise": 0.0}
}


@pytest.fixture(scope="module")
def grids():
    return read_curves(CURVES)


@pytest.mark.parametrize("changes", [*({"preset": name} for name in PRESETS), BY_AVERAGE], ids=[*PRESETS, "average"])
def test_rules_on_drawn_grids_decide_as_a_replay_of_each(script, grids, changes):
    drawn_grids, rules = script("drawn_grids"), Rules.model_validate(changes)
    for grid in drawn_grids.grids_of(grids):
        drawn = drawn_grids.draws(12, 16, len(grid.trials), seed=3)
        names, found = list(grid.trials), drawn_grids.play(rules, grid, drawn)
        replayed = replay(
            rules, {f"{i}": {names[k]: grid.trials[names[k]] for k in one} for i, one in enumerate(drawn)}
        )
        assert np.allclose(found.regret, [one.regret for one in replayed], rtol=0, atol=1e-12)
        assert np.allclose(found.saved_steps, [1 - one.run_steps / one.full_steps for one in replayed], atol=1e-12)
        assert np.all((found.saved >= 0) & (found.saved < 1)) and (found.saved.max() > 0) == (rules.preset != "none")


def test_draws_hold_no_trial_twice_and_are_the_same_each_time(script):
    draws = script("drawn_grids").draws
    drawn = draws(5, 8, 20, seed=1)
    assert [len(set(one)) for one in drawn] == [8] * 5 and len({tuple(one) for one in drawn}) > 1
    assert np.array_equal(drawn, draws(5, 8, 20, seed=1)) and draws(2, 60, 20, seed=1).shape == (2, 20)


def judged(script, regret, *, saved=0.7):
    module, drawn = script("choose_rules"), script("drawn_grids").Drawn
    one = drawn(np.array([saved]), np.array([saved]), np.array([regret]))
    return module.Judged(one, one)


def test_the_least_regret_is_chosen_among_those_that_save_enough(script):
    results = {
        "timid": [judged(script, 0.0, saved=0.4)] * 2,
        "bold": [judged(script, 0.0), judged(script, 0.03)],
        "sound": [judged(script, 0.001), judged(script, 0.001)],
    }
    choose = script("choose_rules").choose
    assert choose(results, [0, 1]) == "sound"
    assert choose(results, [0]) == "bold"
    assert choose({name: results[name] for name in ("timid",)}, [0]) == "timid"


def test_no_grid_is_judged_by_rules_that_were_chosen_with_its_data_or_with_its_seed(script, grids):
    module, grid = script("choose_rules"), script("drawn_grids").Grid
    places = [grid(data, seed, {}) for data in ("a", "b") for seed in ("0", "1")]
    good = [{(0, 1): "on a", (2, 3): "on b"}.get(pair) for pair in ((0, 1), (2, 3))]
    results = {
        good[0]: [judged(script, 0.0)] * 2 + [judged(script, 0.5)] * 2,
        good[1]: [judged(script, 0.5)] * 2 + [judged(script, 0.0)] * 2,
    }
    chosen = module.held_out(results, places)
    assert chosen["data held out"] == [(0, "on b"), (1, "on b"), (2, "on a"), (3, "on a")]
    assert {place for place, _ in chosen["seed held out"]} == {0, 1, 2, 3}
    assert module.held_out(results, places[:1]) == {}


def test_trials_can_be_ranked_by_each_window_and_along_the_slope_of_the_first(script, grids):
    rankings = script("choose_rules").rankings(script("drawn_grids").grids_of(grids))
    assert [name for name in rankings if "window" in name and "slope" not in name] == [
        "average, window 1",
        "average, window 2",
    ]
    first, second, along = (
        next(iter(rankings[name][1][0].trials.values())).curve.more[AVERAGE]
        for name in ("average, window 1", "average, window 2", "average, window 1, slope 0.5")
    )
    assert np.allclose(along, first + 0.5 * (first - second)) and not np.allclose(first, second)


def test_candidates_save_about_what_is_asked_and_can_be_rules(script):
    module = script("choose_rules")
    found = {module.named(one): one for one in module.ladders()}
    assert len(found) == len(list(module.ladders())) > 300
    for one in found.values():
        left = np.cumprod(one["keep"])
        used = one["at"][0] + left @ np.diff([*one["at"], 1.0])
        assert module.SAVED - 0.02 < 1 - used < module.SAVED + module.MORE_SAVED + 0.01
        Rules.model_validate({"underperforming": {**module.RAW, **one, "rank_by": "average"}})


def test_a_frontier_has_those_points_that_no_other_beats_in_both(script):
    found = np.array([[0.5, 0.01], [0.7, 0.02], [0.6, 0.03], [0.7, 0.05], [0.2, 0.0], [0.1, 0.0]])
    assert script("plot_frontier").frontier(found).tolist() == [[0.7, 0.02], [0.5, 0.01], [0.2, 0.0]]
