"""Trials of unlike lengths share devices by the predicted seconds of the whole run."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIG

from altojax.device.batch import usual_longest
from altojax.estimates.step_prices import Prices, StepVariant, prices_of
from altojax.packing.packing_choice import best_course, foresee
from altojax.packing.slot_admission import TOGETHER, Load, Packing
from jaxlm.models.computation import Remat

CHEAP_STEPS = Prices(step_s=0.1, token_s=0.01, compile_s=1.0)
DEAR_STEPS = Prices(step_s=100.0, token_s=0.01, compile_s=1.0)
THREE_TASKS = [Load(i, 4, (32, 96, 256)[i % 3], 50) for i in range(12)]


def test_a_run_of_one_length_is_what_it_always_was():
    loads = [Load(i, 1 + i % 3, 64, 20 + i) for i in range(10)]
    assert best_course(loads, 1, 4, CHEAP_STEPS).packing == TOGETHER


def test_three_tasks_of_unlike_lengths_compute_little_padding_where_steps_are_cheap():
    text = sum(load.rows * load.length * load.steps for load in THREE_TASKS)
    together = foresee(THREE_TASKS, 1, 12)
    best = best_course(THREE_TASKS, 1, 12, CHEAP_STEPS)
    assert together.tokens == 2 * text
    assert best.packing.step_tokens is not None and best.tokens < 1.05 * text
    assert best.seconds(CHEAP_STEPS) < together.seconds(CHEAP_STEPS) / 1.5


def test_one_trial_of_each_length_steps_together_where_a_step_is_dear():
    loads = THREE_TASKS[:3]
    assert best_course(loads, 1, 3, DEAR_STEPS).packing == TOGETHER
    assert best_course(loads, 1, 3, CHEAP_STEPS).packing.step_tokens is not None


def test_where_a_step_is_dear_trials_of_one_length_take_turns_and_so_share_steps_and_no_padding():
    loads = [replace(load, steps=60 - load.trial) for load in THREE_TASKS]
    together, best = foresee(loads, 1, 4), best_course(loads, 1, 4, DEAR_STEPS)
    assert best.packing.like_first
    assert best.tokens < 0.8 * together.tokens and best.steps < 1.1 * together.steps


def test_a_run_of_a_few_steps_is_not_cut_into_shapes_that_take_longer_to_compile():
    few = [Load(i, 1, length, 1) for i, length in enumerate((32, 96, 256))]
    assert best_course(few, 1, 3, Prices(0.1, 0.001, compile_s=10.0)).packing == TOGETHER


loads = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from((32, 64, 256)), st.integers(1, 9)), min_size=1, max_size=9
)
packings = st.builds(Packing, st.none() | st.integers(0, 2000), st.booleans())


@settings(deadline=None)
@given(loads, st.integers(1, 3), st.integers(1, 3), packings)
def test_every_trial_is_foreseen_to_its_end(drawn, groups, slots, packing):
    trials = [Load(i, *one) for i, one in enumerate(drawn)]
    found = foresee(trials, groups, slots, packing)
    assert found.steps >= max(load.steps for load in trials)
    assert found.steps <= sum(load.steps for load in trials)
    assert found.tokens * groups >= sum(load.rows * load.length * load.steps for load in trials)
    assert found.lengths <= {load.length for load in trials}
    best = best_course(trials, groups, slots, CHEAP_STEPS)
    assert best.seconds(CHEAP_STEPS) <= foresee(trials, groups, slots).seconds(CHEAP_STEPS)


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 12))
def test_the_usual_longest_row_is_the_mean_over_all_batches(lengths, rows):
    batches = list(itertools.combinations(lengths, min(rows, len(lengths))))
    mean = float(np.mean([max(batch) for batch in batches]))
    assert usual_longest(lengths, rows) == pytest.approx(mean, abs=1.0) and usual_longest(lengths, rows) >= mean - 1e-5


def test_two_cores_take_the_seconds_that_were_measured_of_135_m_parameters():
    shape = replace(CONFIG, num_layers=30, hidden_size=576, intermediate_size=1536)
    shape = replace(shape, num_heads=9, num_kv_heads=3, head_dim=64, vocab_size=49152)
    variant = StepVariant("xla", Remat("none", scan_layers=True))
    prices = prices_of(shape, variant, slots=8, rank=16, keys=["self_attn.q_proj"])
    assert prices.token_s == pytest.approx(5.33e-3, rel=0.05)
    # docs/measured/log.md: 0.45 s for a row of 64 tokens, 2.78 s for eight.
    assert prices.step_s + 64 * prices.token_s == pytest.approx(0.45, rel=0.1)
    assert prices.step_s + 512 * prices.token_s == pytest.approx(2.78, rel=0.1)
