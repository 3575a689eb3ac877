"""Rules are chosen by what they lose on grids of which none is judged by its own."""

import numpy as np
import pytest

from altojax.early_exit.curve import AVERAGE, average_name
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
    """One of each data set and of each schedule."""
    return {
        name: trials for name, trials in read_curves(CURVES).items() if name in ("gsm8k-3", "banking77-4", "e2e_nlg-5")
    }


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
        assert np.allclose(found.gain, [one.gain or 0.0 for one in replayed], rtol=0, atol=1e-12)
        assert np.allclose(found.saved_steps, [1 - one.run_steps / one.full_steps for one in replayed], atol=1e-12)
        assert np.all((found.saved >= 0) & (found.saved < 1)) and (found.saved.max() > 0) == (rules.preset != "none")


def test_draws_hold_no_trial_twice_and_are_the_same_each_time(script):
    draws = script("drawn_grids").draws
    drawn = draws(5, 8, 20, seed=1)
    assert [len(set(one)) for one in drawn] == [8] * 5 and len({tuple(one) for one in drawn}) > 1
    assert np.array_equal(drawn, draws(5, 8, 20, seed=1)) and draws(2, 60, 20, seed=1).shape == (2, 20)


def judged(script, regret, *, saved=0.7):
    module, drawn = script("choose_rules"), script("drawn_grids").Drawn
    one = drawn(*(np.array([value]) for value in (saved, saved, regret, 0.0)))
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


def test_no_grid_is_judged_by_rules_that_were_chosen_with_its_data_its_seed_or_its_schedule(script):
    module, grid = script("choose_rules"), script("drawn_grids").Grid
    places = [grid(data, seed, {}, "constant") for data in ("a", "b") for seed in ("0", "1")]
    good = [{(0, 1): "on a", (2, 3): "on b"}.get(pair) for pair in ((0, 1), (2, 3))]
    results = {
        good[0]: [judged(script, 0.0)] * 2 + [judged(script, 0.5)] * 2,
        good[1]: [judged(script, 0.5)] * 2 + [judged(script, 0.0)] * 2,
    }
    chosen = module.held_out(results, places)
    assert chosen["data held out"] == [(0, "on b"), (1, "on b"), (2, "on a"), (3, "on a")]
    assert {place for place, _ in chosen["seed held out"]} == {0, 1, 2, 3}
    assert "schedule held out" not in chosen and module.held_out(results, places[:1]) == {}


def test_trials_can_be_ranked_by_each_average_as_if_they_carried_that_alone(script):
    grids = script("drawn_grids").read_grids(CURVES)
    assert {grid.schedule for grid in grids} == {"cosine", "constant", "warmup_stable_decay"}
    found = script("choose_rules").rankings(grids)
    assert {name: (by, len(having)) for name, (by, having) in found.items()} == {
        "raw": ("last", 9),
        "average 1": ("average", 9),
        "average 2": ("average", 7),
        "average 3": ("average", 2),
    }
    [whole] = [grid for grid in grids if (grid.data, grid.seed) == ("gsm8k", "3")]
    [alone] = [grid for grid in found["average 2"][1] if grid.data == "gsm8k"]
    trial = alone.trials["trial-00"].curve.more
    assert trial.keys() == {AVERAGE} and np.array_equal(
        trial[AVERAGE], whole.trials["trial-00"].curve.more[average_name(1)]
    )


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
