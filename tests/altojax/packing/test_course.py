"""The steps of a run that is foreseen, and what they take."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIG

from altojax.estimates.step_prices import StepVariant, prices_of
from altojax.packing.course import foresee
from altojax.packing.slot_admission import Load
from jaxlm.models.computation import Remat

loads = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from((32.0, 64.5, 256.0)), st.just(256), st.integers(1, 9)),
    min_size=1,
    max_size=9,
)


@settings(deadline=None)
@given(loads, st.integers(1, 3), st.integers(1, 3), st.integers(1, 4000) | st.none())
def test_every_trial_is_foreseen_to_its_end(drawn, groups, slots, capacity):
    trials = [Load(i, *one) for i, one in enumerate(drawn)]
    found = foresee(trials, groups, slots, capacity)
    assert max(load.steps for load in trials) <= found.steps <= sum(load.steps for load in trials)
    assert found.tokens * groups >= sum(load.tokens * load.steps for load in trials)


def test_trials_of_unlike_lengths_compute_their_own_tokens_alone():
    trials = [Load(i, 4, (32.0, 96.0, 256.0)[i % 3], 256, 50) for i in range(12)]
    found = foresee(trials, 1, 12)
    assert found.steps == 50 and found.tokens == sum(load.tokens * load.steps for load in trials)


def test_two_cores_take_the_seconds_that_were_measured_of_135_m_parameters():
    shape = replace(CONFIG, num_layers=30, hidden_size=576, intermediate_size=1536)
    shape = replace(shape, num_heads=9, num_kv_heads=3, head_dim=64, vocab_size=49152)
    variant = StepVariant("xla", Remat("none", scan_layers=True))
    prices = prices_of(shape, variant, slots=8, rank=16, keys=["self_attn.q_proj"])
    assert prices.token_s == pytest.approx(5.33e-3, rel=0.05)
    # docs/measured/log.md: 0.45 s for a row of 64 tokens, 2.78 s for eight.
    assert prices.step_s + 64 * prices.token_s == pytest.approx(0.45, rel=0.1)
    assert prices.step_s + 512 * prices.token_s == pytest.approx(2.78, rel=0.1)
