"""Accuracy decides beyond the noise of counting, and the loss within it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altojax.early_exit.curve import AVERAGE, Curve
from altojax.early_exit.metric import (
    METRICS,
    Score,
    are_tied,
    beats,
    by_score,
    comparable_loss,
    error_of_share,
    leader_of,
    mean_and_error,
    metric_names,
    metric_text,
)
from altojax.early_exit.rule import Comparison
from altojax.early_exit.rules import REGISTERED, Rules

ACCURACY, ACCURACY_ERROR = metric_names("accuracy")


def share_error(hits: int, questions: int) -> float:
    return mean_and_error([1.0] * hits + [0.0] * (questions - hits))[1]


COMPARING = [name for name, rule in REGISTERED.items() if issubclass(rule, Comparison) and name != "median"]
NUMBERS = {
    "underperforming": {"at": [0.5], "keep": [0.5]},
    "top_k": {"steps": 0.5, "keep": 2},
    "halving": {"first": 0.5},
}

LOSSES = st.floats(0.1, 10)
ASKED = st.integers(1, 500).flatmap(lambda questions: st.tuples(st.integers(0, questions), st.just(questions), LOSSES))
SCORES = st.one_of(
    ASKED.map(lambda one: Score(one[0] / one[1], share_error(one[0], one[1]), one[2])),
    LOSSES.map(lambda loss: Score.of((), loss)),
)
MANY = st.dictionaries(st.integers(0, 50), SCORES, min_size=1, max_size=12)


def of_rows(hits: int, questions: int, loss: float) -> Score:
    return Score(hits / questions, share_error(hits, questions), loss)


@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_error_of_a_share_is_never_nothing_and_falls_with_the_questions(counts):
    hits, questions = counts
    assert 0 < share_error(hits, questions) <= 0.5
    assert share_error(4 * hits, 4 * questions) < share_error(hits, questions)


def test_the_error_of_many_answers_is_that_of_the_binomial_distribution():
    assert share_error(7_000, 10_000) == pytest.approx(math.sqrt(0.7 * 0.3 / 10_000), rel=1e-3)


@given(MANY)
def test_a_ranking_has_everyone_once_and_who_was_not_asked_last(scores):
    ranked = by_score(scores)
    assert sorted(ranked) == sorted(scores)
    asked = [scores[name].asked for name in ranked]
    assert asked == sorted(asked, reverse=True)
    assert leader_of(scores) == ranked[0]


@given(MANY)
def test_the_first_is_tied_with_the_most_accurate_and_has_the_lowest_loss_of_those(scores):
    asked = {name: one for name, one in scores.items() if one.asked}
    first = scores[by_score(scores)[0]]
    if not asked:
        assert first.loss == min(one.loss for one in scores.values())
        return
    leader = max(asked.values(), key=lambda one: one.metric)
    top = [one for one in asked.values() if one.metric == leader.metric]
    assert any(are_tied(first, one) for one in top)
    assert any(first.loss == min(two.loss for two in asked.values() if are_tied(two, one)) for one in top)


@given(MANY)
def test_nobody_stands_before_one_that_is_more_accurate_beyond_the_noise_of_all(scores):
    ranked = by_score(scores)
    widest = 2 * max((one.error for one in scores.values() if one.asked), default=0.0)
    for place, name in enumerate(ranked):
        for later in ranked[place + 1 :]:
            if scores[name].asked and scores[later].asked:
                assert scores[later].metric - scores[name].metric <= widest


@given(MANY)
def test_without_accuracy_the_order_is_that_of_the_losses(scores):
    losses = {name: Score.of((), one.loss) for name, one in scores.items()}
    assert by_score(losses) == sorted(scores, key=lambda name: (scores[name].loss, name))


@given(SCORES, SCORES)
def test_of_two_at_most_one_beats_the_other(one, other):
    assert not (beats(one, other) and beats(other, one))
    assert beats(one, other) or beats(other, one) or (are_tied(one, other) and one.loss == other.loss)


def test_graded_scores_that_differ_less_have_the_smaller_error():
    mean, error = mean_and_error([0.4, 0.6] * 50)
    assert mean == pytest.approx(0.5) and error < mean_and_error([0.0, 1.0] * 50)[1]
    assert error == pytest.approx(math.sqrt((0.01 * 100 + 0.25 * 4) / 104 / 104))


def test_a_small_lead_on_few_rows_is_none_and_the_same_lead_on_many_is_one():
    few = {"ahead": of_rows(15, 20, 2.0), "behind": of_rows(14, 20, 1.0)}
    many = {"ahead": of_rows(15_000, 20_000, 2.0), "behind": of_rows(14_000, 20_000, 1.0)}
    assert by_score(few) == ["behind", "ahead"]
    assert by_score(many) == ["ahead", "behind"]


def rules(name: str, **more) -> Rules:
    return Rules.model_validate({"preset": "none", name: {**NUMBERS[name], **more}})


def curve(hits: int, loss: float) -> Curve:
    more = {ACCURACY: np.array([np.nan, hits / 1000]), ACCURACY_ERROR: np.array([np.nan, share_error(hits, 1000)])}
    return Curve(np.array([0.25, 0.5]), np.ones(2), np.array([5.0, loss]), more)


OTHER = {"a": "d", "b": "c", "c": "b", "d": "a"}
FOUR = {"a": curve(900, 4.0), "b": curve(895, 3.0), "c": curve(600, 1.0), "d": curve(300, 2.0)}


@pytest.mark.parametrize("name", COMPARING)
def test_each_rule_that_can_ranks_by_accuracy_when_told_to(name):
    assert set(rules(name).at_rung(0, FOUR)) == {"a", "b"}
    found = rules(name, select_by="accuracy").at_rung(0, FOUR)
    assert set(found) == {"c", "d"}
    assert found["c"].detail.startswith("accuracy 60.0 %, ")
    assert "ranked 3 of 4" in found["c"].detail and "accuracy 89.5 %" in found["c"].detail


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", COMPARING)
def test_a_rule_by_a_metric_says_that_it_needs_it(name, metric):
    told = rules(name, select_by=metric)
    needed = {*metric_names(metric), comparable_loss(metric)} - {None}
    assert set(told.lacking(set())) == needed and len(needed) == (3 if metric == "preference" else 2)
    assert told.lacking(needed) == {}


def pairs(right: int, loss: float, own: float, average: str = "") -> Curve:
    """Of preference tuning, on 400 pairs: the losses of other kinds, or another beta, are on scales of their own."""
    names = (*metric_names("preference", average=bool(average)), comparable_loss("preference", average=bool(average)))
    values = right / 400, error_of_share(right / 400, 400), loss
    more = {name: np.array([np.nan, value]) for name, value in zip(names, values, strict=True)}
    more |= {AVERAGE: np.ones(2)} if average else {}
    return Curve(np.array([0.25, 0.5]), np.ones(2), np.array([own, own]), more)


@pytest.mark.parametrize("average", ["", "average"])
@pytest.mark.parametrize("name", COMPARING)
def test_preference_tuning_is_compared_by_accuracy_and_ties_by_a_loss_of_one_beta(name, average):
    """Of the two most accurate, which cannot be told apart, the one with the lower loss of one beta is first."""
    curves = {"a": pairs(380, 0.40, 9.0, average), "b": pairs(376, 0.30, 50.0, average)}
    curves |= {"c": pairs(300, 0.20, 0.1, average), "d": pairs(200, 0.10, 0.01, average)}
    told = rules(name, select_by="preference", **({"rank_by": "average"} if average else {}))
    assert told.comparison.order({trial: told.comparison.judged(one) for trial, one in curves.items()}) == [*"bacd"]
    found = told.at_rung(0, curves)
    assert set(found) == {"c", "d"}
    assert found["c"].detail.startswith("preference accuracy 75.0 %, ") and "DPO loss at β 0.1 0.2" in found["c"].detail
    broken = told.at_rung(0, curves | {"a": pairs(380, 0.4, np.nan, average)})
    assert broken["a"].reason == "not finite", "its own loss ends it"


def test_what_decides_between_adapters_is_kept_with_their_metric():
    """Also where a trial is read again from what a checkpoint or a journal has of it."""
    ahead = {"rewards/accuracies": 0.95, "rewards/accuracies_error": 0.02, "dpo_loss": 0.4}
    behind = ahead | {"dpo_loss": 0.5}
    one, other = Score.among(ahead, 30.0), Score.among(behind, 0.1)
    assert beats(one, other) and one.measured == [0.95, 0.02, 0.4] and Score.of(one.measured, 30.0) == one
    assert Score.among({f"average_{name}": value for name, value in ahead.items()}, 30.0, average=True) == one
    assert Score.of([0.95, 0.02], 30.0).loss == 30.0
    assert metric_text("preference", *one.measured[:2]) == "preference accuracy 95.0 ± 2.0 %"


def test_the_error_of_a_share_is_that_of_scores_that_are_right_or_wrong():
    for right in (0, 3, 10):
        scores = [1.0] * right + [0.0] * (10 - right)
        assert mean_and_error(scores) == (right / 10, pytest.approx(error_of_share(right / 10, 10), abs=1e-15))


@pytest.mark.parametrize("name", COMPARING)
def test_a_rule_that_ranks_by_averages_reads_their_metric(name):
    told = rules(name, select_by="accuracy", rank_by="average")
    assert set(told.lacking(set())) == {AVERAGE, "average_accuracy", "average_accuracy_error"}
    curves = {}
    for trial, one in FOUR.items():
        swapped = {f"average_{key}": value for key, value in FOUR[OTHER[trial]].more.items()}
        curves[trial] = replace(one, more={**one.more, **swapped, AVERAGE: one.val_loss})
    assert set(told.at_rung(0, curves)) == {"a", "b"}


def test_a_runs_choice_is_not_written_down_as_the_rules_own():
    given = Rules.model_validate("cautious")
    choosing = given.selecting_by("accuracy")
    assert choosing.comparison.select_by == "accuracy" and given.comparison.select_by == "loss"
    assert choosing.model_dump(exclude_unset=True) == given.model_dump(exclude_unset=True)
    told = rules("halving", select_by="loss")
    assert told.selecting_by("accuracy") is told


def test_a_metric_is_asked_at_few_rungs_where_the_preset_has_many():
    given = Rules.model_validate("default")
    asked = given.selecting_by("exact_match")
    assert len(asked.rungs) == 4 < len(given.rungs) == len(given.selecting_by("preference").rungs)
    assert asked.model_dump(exclude_unset=True) == given.model_dump(exclude_unset=True)
    at = {"at": [0.1, 0.5], "keep": [0.5, 0.5]}
    told = Rules.model_validate({"underperforming": at}).selecting_by("exact_match")
    assert told.rungs == (0.1, 0.5) and told.comparison.select_by == "exact_match"
    assert Rules.model_validate("paper").selecting_by("exact_match").rungs == (0.05,)


def test_a_rule_that_compares_losses_alone_refuses_accuracy():
    with pytest.raises(ValueError, match=r"median compares losses alone.*expected another rule"):
        Rules.model_validate("median").selecting_by("accuracy")
