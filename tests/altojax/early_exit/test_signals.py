"""Arithmetic on loss curves, against answers worked out another way."""

import numpy as np
import pytest

from altojax.early_exit import signals
from altojax.early_exit.comparisons.underperforming import projected_loss, scatter
from altojax.early_exit.curve import Curve


def curve(val, schedule=None):
    val = np.asarray(val, float)
    return Curve(np.arange(1, len(val) + 1) / (schedule or len(val)), np.ones(len(val)), val)


def test_moving_average_starts_at_the_first_loss_and_skips_what_is_not_finite():
    average = signals.smoothed(np.array([np.nan, 4.0, 2.0, np.inf, 2.0]), 0.5)
    np.testing.assert_allclose(average, [np.nan, 4.0, 3.0, 3.0, 2.5])


def test_slope_is_that_of_least_squares():
    loss = np.random.default_rng(0).normal(size=(3, 9))
    slopes = signals.slope(loss, 4)
    assert np.isnan(slopes[:, :3]).all()
    for t in range(3, 9):
        np.testing.assert_allclose(slopes[:, t], np.polyfit(np.arange(4), loss[:, t - 3 : t + 1].T, 1)[0], atol=1e-12)


def test_scatter_is_the_noise_and_no_part_of_a_straight_trend():
    fraction = np.linspace(0.001, 1, 4000)
    noise = np.random.default_rng(1).normal(scale=0.03, size=4000)
    assert scatter(Curve(fraction, fraction, 5 - 2 * fraction + noise), span=0.9) == pytest.approx(0.03, rel=0.05)
    assert scatter(Curve(fraction, fraction, 5 - 2 * fraction), span=0.9) < 1e-9


def test_projection_follows_a_fall_and_no_rise():
    falling = curve([3.0, 2.9, 2.8, 2.7], schedule=10)
    assert projected_loss(falling, span=0.9, horizon=0.5) == pytest.approx(2.7 - 0.5 * 0.6)
    assert projected_loss(curve([2.7, 2.8, 2.9], schedule=10), span=0.9, horizon=0.5) == pytest.approx(2.9)
    assert projected_loss(curve([9.0, 2.5], schedule=100), span=0.001, horizon=1.0) == 2.5
    assert projected_loss(curve([2.0, np.nan]), span=0.9, horizon=1.0) == np.inf


def test_losses_of_a_trial_that_is_not_finite_now_are_inf_however_good_it_was():
    for measure in (signals.last_loss, signals.best_loss, signals.mean_loss):
        assert measure(curve([0.1, np.nan])) == np.inf
        assert measure(curve([])) == np.inf
    recovered = curve([1.0, np.inf, 3.0])
    assert (signals.last_loss(recovered), signals.best_loss(recovered), signals.mean_loss(recovered)) == (3.0, 1.0, 2.0)
