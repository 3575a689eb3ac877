"""The price of asking for accuracy against that of training."""

import pytest

from altojax.estimates.metric_price import TRAINING_PASSES, questions_paid_for


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
