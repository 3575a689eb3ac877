"""The test at the end says a loss and its error as statistics has them, and what was recorded is what is told."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altojax.report.held_out import HeldOut

LOSSES = st.floats(0.01, 20)
ROWS = st.lists(st.tuples(LOSSES, LOSSES, st.integers(1, 500)), min_size=2, max_size=30)


@given(ROWS)
def test_the_loss_is_that_of_all_targets_together(rows):
    adapter, base, targets = zip(*rows, strict=True)
    found = HeldOut.of_rows("trial-0", adapter, base, targets)
    assert found.loss == pytest.approx(sum(adapter) / sum(targets))
    assert found.base_loss == pytest.approx(sum(base) / sum(targets))
    assert (found.rows, found.targets) == (len(rows), sum(targets))


@given(st.lists(st.tuples(LOSSES, LOSSES), min_size=2, max_size=30), st.integers(1, 9))
def test_rows_of_as_many_targets_have_the_error_of_a_mean_of_differences(rows, targets):
    adapter, base = (np.asarray(one) for one in zip(*rows, strict=True))
    found = HeldOut.of_rows("trial-0", adapter, base, [targets] * len(rows))
    apart = (adapter - base) / targets
    assert found.error == pytest.approx(apart.std(ddof=1) / math.sqrt(len(rows)), abs=1e-12)


def test_the_error_is_how_far_the_difference_strays_from_sample_to_sample():
    random = np.random.default_rng(0)
    targets = random.integers(5, 200, (4000, 60))
    base = targets * random.normal(2.0, 0.3, targets.shape)
    adapter = base - targets * random.normal(0.1, 0.2, targets.shape)
    found = [HeldOut.of_rows("t", *rows) for rows in zip(adapter, base, targets, strict=True)]
    assert np.mean([one.error for one in found]) == pytest.approx(np.std([one.difference for one in found]), rel=0.05)


@given(ROWS)
def test_what_is_recorded_is_what_is_told(rows):
    found = HeldOut.of_rows("trial-0", *zip(*rows, strict=True))
    assert HeldOut.from_payload(json.loads(json.dumps(found.to_payload()))) == found


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (HeldOut("a", 9, 90, 1.0, 2.0, 0.1), "(base 2.0000; difference -1.0000, standard error 0.1000)"),
        (HeldOut("a", 9, 90, 1.9, 2.0, 0.1), "standard error 0.1000, which may be chance)"),
        (HeldOut("a", 1, 90, 1.9, 2.0, None), "over 1 held-out row (base 2.0000; of one row no error is known)"),
        (HeldOut("a", 9, 90, 1.0, 2.0, 0.1, 2), "; look 2 at these rows"),
        (HeldOut("a", 9, 90, 1.0, math.inf, math.nan), "difference -inf, standard error nan)"),
    ],
)
def test_a_difference_that_may_be_chance_is_called_that(found, said):
    assert found.sentence().endswith(said)
