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


def said(regret, *, saved=0.7):
    keys = ("grid_mean", "grid_worst", "drawn_mean", "drawn_p95")
    return {"saved": saved, "steps": saved, "kept": float(regret == 0), **dict.fromkeys(keys, regret)}


def test_what_saves_enough_is_better_than_what_does_not_and_then_what_loses_least_on_any_grid(script):
    cost = script("choose_rules").cost
    timid = cost([said(0.0, saved=0.4)] * 2)
    bold, sound = cost([said(0.0), said(0.03)]), cost([said(0.001)] * 2)
    assert sound < bold < timid and cost([said(0.0)]) < sound
    assert cost([said(0.0, saved=0.6), said(0.0, saved=0.75)]) == cost([said(0.0)]), "enough on the mean"


def test_no_grid_is_judged_by_rules_that_were_chosen_with_its_data_its_seed_or_its_schedule(script):
    module, grid = script("choose_rules"), script("drawn_grids").Grid
    places = [grid(data, seed, {}, "constant") for data in ("a", "b") for seed in ("0", "1")]
    chosen = module.held_out(places, lambda among: {(one.data, one.seed) for one in among})
    assert chosen.keys() == {"data held out", "seed held out"}
    for what, found in chosen.items():
        assert sorted(place for place, _ in found) == [0, 1, 2, 3]
        for place, among in found:
            key = (places[place].data, places[place].seed)
            which = 0 if what == "data held out" else 1
            assert among == {(one.data, one.seed) for one in places if (one.data, one.seed)[which] != key[which]}
    assert module.held_out(places[:1], lambda among: among) == {}


def test_a_search_comes_near_the_shares_that_cost_least(script):
    module, asked = script("choose_rules"), []
    at, wanted = (0.05, 0.2, 0.6), (0.7, 0.3, 0.2)

    def price(left):
        asked.append(left)
        return 0.0, sum(abs(one - other) for one, other in zip(left, wanted, strict=True))

    left = module.search(at, price)
    assert sum(abs(one - other) for one, other in zip(left, wanted, strict=True)) < 0.1
    assert left == module.search(at, price), "the same each time"
    for one in asked:
        assert 0.6 < 1 - module.samples_left(at, one) < 0.72
        Rules.model_validate({"underperforming": {**module.numbers(at, one), "rank_by": "average"}})


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


def test_a_frontier_has_those_points_that_no_other_beats_in_both(script):
    found = np.array([[0.5, 0.01], [0.7, 0.02], [0.6, 0.03], [0.7, 0.05], [0.2, 0.0], [0.1, 0.0]])
    assert script("plot_frontier").frontier(found).tolist() == [[0.7, 0.02], [0.5, 0.01], [0.2, 0.0]]
