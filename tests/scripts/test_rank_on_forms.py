"""How a form of the base ranks trials is said right: agreement, another winner and what that costs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

LOSSES = st.lists(st.integers(0, 1000), min_size=3, max_size=12, unique=True)


@given(losses=LOSSES, shift=st.integers(-500, 500))
def test_forms_agree_where_all_losses_move_alike_and_a_loser_that_wins_costs_its_loss(script, losses, shift):
    beside = script("rank_on_forms").beside
    first = np.array(losses) / 100
    names = [f"trial-{place}" for place in range(len(losses))]
    assert beside(first, first + shift / 100, names) == ("1.000", "1.000", "the same", f"{shift / 100:+.4f}", "+0.0000")
    backwards = beside(first, -first, names)
    assert backwards[:2] == ("-1.000", "-1.000")
    assert backwards[2] == f"{names[first.argmax()]}, not {names[first.argmin()]}"
    assert backwards[4] == f"{first.max() - first.min():+.4f}"
