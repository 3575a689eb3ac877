import numpy as np

from altojax.early_exit.curve import Curve
from altojax.early_exit.replay import RecordedTrial, ReplayedGroup


def trial(loss):
    return RecordedTrial(np.array([1.0, 2.0]), 2, Curve(np.array([0.5, 1.0]), np.full(2, loss), np.full(2, loss)))


def test_groups_of_a_task_are_pooled_without_losing_trials(script):
    groups = {
        "cats-0": {"1": trial(1.0)},
        "cats-1": {"1": trial(2.0), "2": trial(3.0)},
        "big-cats-0": {"1": trial(4.0)},
    }
    tasks = script("choose_rules").pool(groups)
    assert {task: len(trials) for task, trials in tasks.items()} == {"cats": 3, "big-cats": 1}


def test_dealt_groups_hold_no_trial_twice_and_are_the_same_each_time(script):
    choose_rules = script("choose_rules")
    task = {f"{k}": trial(float(k)) for k in range(20)}
    dealt = choose_rules.deal(task, 8, 5, seed=1)
    assert [len(group) for group in dealt.values()] == [8] * 5
    assert {name: list(group) for name, group in dealt.items()} == {
        name: list(group) for name, group in choose_rules.deal(task, 8, 5, seed=1).items()
    }
    assert len({tuple(group) for group in dealt.values()}) > 1
    assert [len(group) for group in choose_rules.deal(task, 60, 2, seed=1).values()] == [20, 20]


def test_a_candidate_that_loses_too_much_anywhere_is_not_chosen_however_much_it_saves(script):
    results = {
        "timid": {"a": [ReplayedGroup(90, 100, 0.0)], "b": [ReplayedGroup(90, 100, 0.0)]},
        "bold": {"a": [ReplayedGroup(10, 100, 0.0)] * 9, "b": [ReplayedGroup(10, 100, 0.03)]},
        "sound": {"a": [ReplayedGroup(40, 100, 0.0)], "b": [ReplayedGroup(40, 100, 0.009)]},
    }
    assert script("choose_rules").choose(results, ["a", "b"]) == "sound"
    assert script("choose_rules").choose(results, ["a"]) == "bold"


def test_where_every_candidate_loses_too_much_the_one_that_loses_least_is_chosen(script):
    results = {"worse": {"a": [ReplayedGroup(10, 100, 0.5)]}, "better": {"a": [ReplayedGroup(90, 100, 0.1)]}}
    assert script("choose_rules").choose(results, ["a"]) == "better"
