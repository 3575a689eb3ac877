"""Dealing units: exact counts, every unit held, groups of one size, refusals."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.families.registry import random_config
from jaxrun.process.errors import UserError
from twistjax.training.units import check_coverage, kept_of, units_of

GQA = replace(random_config("llama"), num_heads=12, num_kv_heads=4, num_layers=2)
PLAIN = replace(random_config("gpt2"), num_heads=6, num_kv_heads=6, num_layers=2)
few = settings(max_examples=25, deadline=None)
kappas = st.sampled_from([0.25, 0.3, 0.375, 0.5, 0.625, 0.75, 1.0])


@few
@given(st.lists(kappas, min_size=4, max_size=6), st.sampled_from([GQA, PLAIN]), st.integers(0, 2**31))
def test_every_unit_has_a_holder_and_every_worker_exactly_its_count(shares, config, seed):
    units = units_of(config, shares, 16)
    hands = units.deal(jax.random.key(seed), shares)
    for kappa, kept in zip(shares, hands, strict=True):
        small = units.subnetwork(kappa)
        assert kept.heads.shape == (config.num_layers, small.num_heads)
        assert kept.kv_heads.shape == (config.num_layers, small.num_kv_heads)
        assert kept.neurons.shape == (config.num_layers, small.intermediate_size)
        assert small.intermediate_size == 16 * kept_of(config.intermediate_size // 16, kappa)
        assert all((np.diff(np.asarray(index), axis=1) > 0).all() for index in kept)
    for layer in range(config.num_layers):
        for name, count in (("heads", config.num_heads), ("neurons", config.intermediate_size)):
            held = np.concatenate([np.asarray(getattr(kept, name)[layer]) for kept in hands])
            np.testing.assert_array_equal(np.unique(held), np.arange(count))


@few
@given(kappas, st.integers(0, 2**31))
def test_a_query_head_keeps_its_own_key_head_and_groups_stay_of_one_size(kappa, seed):
    units = units_of(GQA, [kappa], 32)
    kept, small = units.draw(jax.random.key(seed), kappa), units.subnetwork(kappa)
    assert units.in_groups == (kappa * 4 != round(kappa * 4))
    of_group = GQA.num_heads // GQA.num_kv_heads
    size = small.num_heads // small.num_kv_heads
    for heads, kv_heads in zip(np.asarray(kept.heads), np.asarray(kept.kv_heads), strict=True):
        np.testing.assert_array_equal(heads // of_group, np.repeat(kv_heads, size))


def test_one_uneven_kappa_of_a_run_decides_for_all_so_that_units_are_the_same():
    assert not units_of(GQA, [0.5, 0.25], 32).in_groups
    assert units_of(GQA, [0.5, 0.3], 32).in_groups
    assert not units_of(PLAIN, [0.5, 0.3], 32).in_groups


@pytest.mark.parametrize(("units", "kappa", "kept"), [(12, 0.25, 3), (10, 0.3, 3), (3, 0.5, 2), (3, 0.01, 1)])
def test_a_share_is_rounded_up_but_not_for_floating_points_sake(units, kappa, kept):
    assert kept_of(units, kappa) == kept


def test_layers_and_rounds_are_shuffled_apart_and_a_key_repeats_itself():
    units = units_of(replace(PLAIN, num_layers=8), [0.5], 4)
    one, again, other = (np.asarray(units.draw(jax.random.key(seed), 0.5).neurons) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert len({row.tobytes() for row in one}) == 8


@pytest.mark.parametrize(("shares", "needed"), [([0.25] * 3, 4), ([0.3] * 3, 4), ([0.1], 10), ([0.2, 0.4], 4)])
def test_too_few_workers_are_refused_with_the_fewest_that_do(shares, needed):
    with pytest.raises(UserError, match=rf"workers: given {len(shares)}, .* expected at least {needed} workers"):
        units_of(PLAIN, shares, 32).deal(jax.random.key(0), shares)
    check_coverage([0.25] * 4)
    check_coverage([0.1] * 10)


@pytest.mark.parametrize(
    ("kappa", "block", "message"),
    [
        (0.0, 32, "kappa: given 0, expected a share above 0 and up to 1"),
        (1.5, 32, "kappa: given 1.5, expected"),
        (float("nan"), 32, "kappa: given nan, expected"),
        (0.5, 7, "block: given 7, expected a divisor of the MLP's 256 neurons"),
        (0.5, 0, "block: given 0, expected"),
    ],
)
def test_a_share_or_block_that_makes_no_sense_is_refused(kappa, block, message):
    with pytest.raises(UserError, match=message):
        units_of(PLAIN, [kappa], block)


def test_a_family_whose_heads_are_normed_together_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^model: olmo2 norms all heads' queries together, .* expected a family whose"):
        units_of(random_config("olmo2"), [0.5])


def test_experts_are_not_cut():
    with pytest.raises(UserError, match=r"^model: qwen3_moe is a mixture of 6 experts, expected a dense model$"):
        units_of(random_config("qwen3_moe"), [0.5])
