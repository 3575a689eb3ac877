"""However large a loss, its perplexity is a finite number that is told in a few characters."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.models.perplexity import mean_and_deviation, perplexity, shown

LOSSES = st.floats(0, 1e308)


@given(LOSSES)
def test_a_perplexity_is_finite_and_short(loss):
    value = perplexity(loss)
    assert math.isfinite(value)
    assert value == math.exp(min(loss, 700.0))
    assert len(shown(value)) < 12


@given(st.lists(LOSSES, min_size=1, max_size=8))
def test_mean_and_deviation_are_finite_and_go_through_json(losses):
    mean, deviation = mean_and_deviation(losses)
    assert json.loads(json.dumps([mean, deviation], allow_nan=False)) == [mean, deviation]
    assert perplexity(min(losses)) * (1 - 1e-9) <= mean <= perplexity(max(losses)) * (1 + 1e-9)


@given(st.lists(st.floats(0, 12), min_size=2, max_size=8))
def test_mean_and_deviation_are_the_usual_ones(losses):
    values = np.exp(losses)
    mean, deviation = mean_and_deviation(losses)
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert deviation == pytest.approx(values.std(ddof=1), rel=1e-6, abs=1e-9 * values.max())


def test_what_is_no_number_is_said_to_be_none():
    assert shown(perplexity(math.nan)) == "not a number"
    assert all(math.isnan(value) for value in mean_and_deviation([1.0, math.nan]))
    assert shown(perplexity(800.0)) == "over 1e+300"
    assert shown(perplexity(math.log(61.02))) == "61.02"
