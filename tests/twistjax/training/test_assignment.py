"""Units by importance are prefixes; a core is everybody's, and every other unit has a holder."""

from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twist_runs import write_twist_config

from jaxlm.families.registry import random_config
from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError
from twistjax.config import TwistConfig
from twistjax.training.assignment import Assignment, check_core, core_of
from twistjax.training.gather_scatter import MLP_OUT, gather
from twistjax.training.importance import UnitScores
from twistjax.training.rounds_plan import plan_of
from twistjax.training.units import kept_of, units_of

GQA = replace(random_config("llama"), num_heads=12, num_kv_heads=4, num_layers=2)
few = settings(max_examples=8, deadline=None)


def ordered(units, seed=0):
    """An order by scores that are drawn."""
    draw = np.random.default_rng(seed)
    shapes = (units.layers, units.rows, units.heads), (units.layers, units.blocks)
    return UnitScores(*(draw.normal(size=shape).astype(np.float32) for shape in shapes)).order()


@pytest.mark.parametrize("kappas", [[0.25, 0.5, 1.0], [0.3, 0.6, 1.0]])
def test_a_smaller_subnetwork_by_importance_is_the_beginning_of_every_larger_one(kappas):
    units = units_of(GQA, kappas, 16)
    order = ordered(units)
    assignment = Assignment(units, order)
    hands = assignment.deal(jax.random.key(1), kappas)
    assert not assignment.draws
    rows = lambda kept: np.asarray(kept.heads).reshape(units.layers, units.rows, -1)  # noqa: E731
    for small, large, kappa in zip(hands, hands[1:], kappas, strict=False):
        np.testing.assert_array_equal(rows(small), rows(large)[..., : rows(small).shape[2]])
        np.testing.assert_array_equal(small.neurons, large.neurons[:, : small.neurons.shape[1]])
        np.testing.assert_array_equal(small.neurons[:, ::16] // 16, order.blocks[:, : kept_of(units.blocks, kappa)])
        assert [part.shape for part in small] == [part.shape for part in units.draw(jax.random.key(0), kappa)]
    whole = {MLP_OUT: np.random.default_rng(1).normal(size=(2, GQA.intermediate_size, 4)).astype(np.float32)}
    cut = [np.asarray(gather(whole, kept, units)[MLP_OUT]) for kept in hands]
    for small, large in pairwise(cut):
        np.testing.assert_array_equal(small, large[:, : small.shape[1]])
    for kept, again in zip(hands, assignment.deal(jax.random.key(2), kappas), strict=True):
        np.testing.assert_array_equal(kept.neurons, again.neurons)
    np.testing.assert_array_equal(np.sort(hands[-1].heads, axis=-1), np.broadcast_to(np.arange(12), (2, 12)))


@few
@given(st.sampled_from([(0.5, 4), (0.3, 6)]), st.sampled_from([0.25, 0.5, 0.9]), st.integers(0, 2**31))
def test_every_subnetwork_has_the_core_and_somebody_every_other_unit(kind, share, seed):
    kappa, workers = kind
    units = units_of(GQA, [kappa], 16)
    try:
        core = core_of(units, share, [kappa], workers)
    except UserError as error:
        workers = int(str(error).partition("at least ")[2].split()[0])
        core = core_of(units, share, [kappa], workers)
    order = ordered(units, seed)
    assignment = Assignment(units, order, core)
    hands = assignment.deal(jax.random.key(seed), [kappa] * workers)
    drawn = assignment.draw(jax.random.key(seed + 1), kappa)
    blocks = [np.asarray(kept.neurons)[:, ::16] // 16 for kept in (*hands, drawn)]
    for layer in range(units.layers):
        most = set(np.asarray(order.blocks)[layer, : core[1]].tolist())
        assert all(most <= set(own[layer].tolist()) for own in blocks)
        assert set(np.concatenate([own[layer] for own in blocks[:-1]]).tolist()) == set(range(units.blocks))
        assert set(np.concatenate([kept.heads[layer] for kept in hands]).tolist()) == set(range(12))
    assert all((np.diff(own, axis=1) > 0).all() and own.shape[1] == kept_of(units.blocks, kappa) for own in blocks)
    assert assignment.draws


def test_a_core_of_which_too_few_workers_draw_is_refused_with_the_fewest_that_do():
    units = units_of(GQA, [0.5], 16)
    with pytest.raises(UserError, match=r"given 2, .* core of 0.5 .* at least 3 workers of kappa 0.5"):
        core_of(units, 0.5, [0.5], 2)
    with pytest.raises(UserError, match=r"core: given 0.1, no unit of .* 2 heads in a row and 1 MLP block;"):
        check_core(units_of(GQA, [0.5], GQA.intermediate_size), 0.1, [0.5], 3)
    assert core_of(units, 0.5, [0.5], 3) == (1, GQA.intermediate_size // 64)


def test_by_importance_a_round_has_the_largest_the_smallest_and_others_between(tmp_path):
    path = write_twist_config(tmp_path, "subnetworks: {workers: 5, kappa: [0.25, 0.5, 0.75, 1], order: importance}")
    plan = plan_of(load_config(TwistConfig, path), 1000)
    rounds = [plan.kappas(number) for number in range(20)]
    assert all(kappas[:2] == [1.0, 0.25] and set(kappas[2:]) <= {0.5, 0.75} for kappas in rounds)
    assert len({tuple(kappas) for kappas in rounds}) > 1
    with pytest.raises(UserError, match=r"workers_at_once: given 5 of 5 workers, expected at most half"):
        plan_of(load_config(TwistConfig, path, ["subnetworks.workers_at_once=5"]), 1000)
    with pytest.raises(UserError, match=r"subnetworks.core: of order importance all is the core"):
        plan_of(load_config(TwistConfig, path, ["subnetworks.core=0.5"]), 1000)
    with pytest.raises(UserError, match=r"subnetworks.workers: given 1, expected at least 2"):
        plan_of(load_config(TwistConfig, path, ["subnetworks.workers=1"]), 1000)
    with pytest.raises(UserError, match=r"teacher: self, of which no worker of kappa 1 learns"):
        plan_of(load_config(TwistConfig, path, ["subnetworks.kappa=1.0", "training.teacher=self"]), 1000)
