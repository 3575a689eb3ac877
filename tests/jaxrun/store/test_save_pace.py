"""Checkpoints take no more than their share of a run's time, whatever one of them takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrun.store.save_pace import BYTES_PER_S, SavePace


@given(st.lists(st.tuples(st.floats(0.01, 100.0), st.floats(0.0, 50.0)), min_size=1, max_size=200))
def test_checkpoints_take_at_most_their_share_of_the_time(rounds):
    elapsed_s = saving_s = last_s = 0.0
    pace = SavePace(0.05)
    for round_s, took_s in rounds:
        elapsed_s += round_s
        if pace.due(elapsed_s):
            elapsed_s, saving_s, last_s = elapsed_s + took_s, saving_s + took_s, took_s
            pace.saved(elapsed_s, took_s)
    assert saving_s - last_s <= 0.05 * elapsed_s + 1e-9


def test_the_first_checkpoint_is_expected_by_its_size():
    pace = SavePace(0.05, elapsed_s=100.0, size_bytes=round(2 * BYTES_PER_S))
    assert not pace.due(137.9) and pace.due(138.1)
    pace.saved(200.0, 1.0)
    assert pace.next_s == pytest.approx(219.0)
    assert SavePace(0.05, elapsed_s=100.0).due(100.0)
