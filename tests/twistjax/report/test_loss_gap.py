"""A ticket is far worse than the full model from twice its perplexity on, and the line that says so has both."""

import math

from hypothesis import given
from hypothesis import strategies as st

from twistjax.report.loss_gap import FAR_WORSE, warning


@given(st.floats(0, 700), st.floats(0, 700))
def test_a_ticket_is_far_worse_from_twice_the_perplexity_on(loss, full):
    line = warning("it", loss, full)
    assert (line is None) == (loss - full <= FAR_WORSE)
    assert line is None or ("\n" not in line and len(line) < 200)


def test_the_warning_has_both_perplexities_and_how_many_times():
    assert warning("the best ticket", math.log(4651), math.log(61)) == (
        "warning: the best ticket is far worse than the full model, perplexity 4651.00 against 61.00 (76.2 times); "
        "train for longer, or keep more"
    )
    assert warning("the best ticket", math.log(80), math.log(61)) is None
