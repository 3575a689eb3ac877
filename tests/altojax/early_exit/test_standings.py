"""Trials that have come unequally far stand by what they had reached where both have been."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from altojax.early_exit.curve import AVERAGE, Curve
from altojax.early_exit.standings import standings


def curve(*losses: float, of: int = 10, late: float = 0.0) -> Curve:
    fraction = (np.arange(len(losses)) + 1) / of + late
    return Curve(fraction, np.full(len(losses), np.nan), np.array(losses))


def test_two_are_compared_at_the_latest_share_that_both_reached():
    """Far along, a is the best; where b ended it was behind b, and ahead of c."""
    found = standings({"a": curve(3.0, 2.5, 1.0), "b": curve(2.9, 2.4), "c": curve(3.1, 2.6)})
    assert found == {"a": 0.5, "b": 0.0, "c": 1.0}


def test_shares_that_whole_steps_put_apart_are_the_same():
    found = standings({"a": curve(3.0, 2.0, late=0.004), "b": curve(2.9, 2.1)})
    assert found == {"a": 0.0, "b": 1.0}


def test_what_was_not_finite_stands_behind_and_equals_share():
    found = standings({"a": curve(np.nan, np.inf), "b": curve(9.0), "c": curve(9.0, np.nan)})
    assert found == {"a": 1.0, "b": 0.25, "c": 0.25}
    assert standings({"alone": curve(1.0)}) == {"alone": 0.0}


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=2, max_size=8))
def test_they_add_up_and_depend_on_no_order(losses):
    curves = {str(i): curve(*map(float, one)) for i, one in enumerate(losses)}
    found = standings(curves)
    assert abs(sum(found.values()) - len(curves) / 2) < 1e-9
    assert found == standings(dict(reversed(curves.items())))


def test_a_trial_without_an_average_yet_is_level_with_those_that_have_one():
    fraction, losses = np.array([0.02, 0.05]), np.array([3.0, 2.0])
    has = Curve(fraction, losses, losses, {AVERAGE: np.array([np.nan, 2.5])})
    young = Curve(fraction[:1], losses[:1], losses[:1])
    assert standings({"has": has.averaged, "young": young.averaged}) == {"has": 0.5, "young": 0.5}
