"""The price of asking for accuracy against that of training."""

import pytest

from altojax.estimates.metric_price import NEW_TOKEN, TRAINING_PASSES, answer_passes, over_budget, questions_paid_for


def everyone(index: int, living: int) -> int:
    return living


def test_one_trial_and_the_base_are_asked_once_each_without_rungs():
    assert questions_paid_for([1000], [()], everyone, 4) == pytest.approx(TRAINING_PASSES * 1000 / (2 * 4))


def test_trials_that_a_rung_ends_train_no_further_and_are_asked_no_more():
    kept = questions_paid_for([1000] * 4, [(0.5,)] * 4, lambda index, living: 1, 10)
    samples, asked = 4 * 500 + 500, 1 + 4 + 1
    assert kept == pytest.approx(TRAINING_PASSES * samples / (asked * 10))


def test_more_labels_and_more_rungs_pay_for_fewer_questions():
    few = questions_paid_for([100, 200], [(0.5,)] * 2, everyone, 5)
    assert questions_paid_for([100, 200], [(0.5,)] * 2, everyone, 10) == pytest.approx(few / 2)
    assert questions_paid_for([100, 200], [(0.25, 0.5)] * 2, everyone, 5) < few


def test_trials_whose_averages_are_asked_too_are_asked_half_as_much_but_for_the_base():
    one, both = (questions_paid_for([1000], [()], everyone, 4, adapters) for adapters in (1, 2))
    assert one / both == pytest.approx(3 / 2)


def test_a_generated_token_costs_many_of_a_prompt():
    assert answer_passes(100, 0, 50) == 2
    assert answer_passes(100, 10, 50) == 2 + 10 * NEW_TOKEN / 50


def test_more_time_than_was_predicted_is_said():
    assert over_budget("exact_match", 0.1, 10.0, 100.0) == over_budget("loss", 0.1, 0.0, 0.0) == ""
    assert over_budget("exact_match", 0.1, 31.0, 100.0).startswith("measuring exact_match took 31 % of the time of")
