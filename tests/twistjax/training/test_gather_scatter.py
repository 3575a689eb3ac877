"""Gathering subnetworks from the central model and averaging them back."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import every_cuttable_family
from flax import nnx

from jaxlm.families.names import weights
from jaxlm.families.registry import random_config
from jaxlm.models.functional import Functional, weights_by_path
from jaxlm.models.transformer import Transformer
from twistjax.training.gather_scatter import ATTENTION_OUT, MLP_OUT, add, corrected, gather, holder_mean, holders, sides
from twistjax.training.rounds import Outer
from twistjax.training.units import units_of

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 12)), jnp.int32)


@cache
def central(family):
    """A full model's weights by path, biases drawn too."""
    model = Transformer(random_config(family), dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    draw = np.random.default_rng(1)
    return {
        path: jnp.asarray(draw.normal(0, 0.3, value.shape), jnp.float32) if path.endswith("bias") else value
        for path, value in weights_by_path(model, jnp.float32).items()
    }


@cache
def forward(config):
    functional = Functional(config)
    return functional.shapes, jax.jit(lambda values: functional.bind(values)(TOKENS))


def run(config, values):
    shapes, logits = forward(config)
    assert {path: value.shape for path, value in values.items()} == shapes
    return np.asarray(logits(values))


def averaged(before, trained, hands, units):
    """The mean over holders, each worker added by itself, as waves of one worker would."""
    total = {path: jnp.zeros_like(value) for path, value in before.items()}
    held = None
    for one, kept in zip(trained, hands, strict=True):
        total = add(total, one, kept, units)
        own = holders(jax.tree.map(lambda part: part[None], kept), units)
        held = own if held is None else jax.tree.map(jnp.add, held, own)
    return holder_mean(before, total, held, len(hands))


@every_cuttable_family
@pytest.mark.parametrize("kappa", [0.5, 0.3])
def test_a_gathered_subnetwork_is_the_full_model_whose_other_units_are_silent(family, kappa):
    config = random_config(family)
    units = units_of(config, [kappa], 32)
    kept = units.draw(jax.random.key(3), kappa)
    small = run(units.subnetwork(kappa), gather(central(family), kept, units))
    silent = dict(central(family))
    for path, index, size in ((ATTENTION_OUT, kept.heads, config.head_dim), (MLP_OUT, kept.neurons, 1)):
        loud = np.zeros((config.num_layers, silent[path].shape[1] // size, size, 1), np.float32)
        for layer, row in enumerate(np.asarray(index)):
            loud[layer, row] = 1
        silent[path] = silent[path] * loud.reshape(config.num_layers, -1, 1)
    np.testing.assert_allclose(small, run(config, silent), atol=2e-5)
    assert abs(small - run(config, central(family))).max() > 1e-3


@every_cuttable_family
def test_a_subnetwork_of_everything_is_the_model_and_comes_back_as_it_went(family):
    config = random_config(family)
    units = units_of(config, [1.0], 32)
    kept = units.draw(jax.random.key(0), 1.0)
    small = gather(central(family), kept, units)
    after = averaged(central(family), [small], [kept], units)
    for path, value in central(family).items():
        np.testing.assert_array_equal(small[path], value, path)
        np.testing.assert_array_equal(after[path], value, path)


@every_cuttable_family
def test_every_weight_becomes_the_mean_of_its_holders_and_shared_ones_of_all(family):
    config, shares = random_config(family), [0.5, 0.5, 0.25, 1.0]
    units = units_of(config, shares, 16)
    hands = units.deal(jax.random.key(5), shares)
    draw = np.random.default_rng(2)
    trained = []
    for kept in hands:
        small = gather(central(family), kept, units)
        trained.append({path: value + jnp.float32(draw.normal()) for path, value in small.items()})
    after = averaged(central(family), trained, hands, units)
    # Where each weight went: the same gather, of its own index.
    places = {
        path: jnp.arange(before.size, dtype=jnp.int32).reshape(before.shape) for path, before in central(family).items()
    }
    went = [gather(places, kept, units) for kept in hands]
    for path, before in central(family).items():
        total, holders = np.zeros(before.size), np.zeros(before.size)
        for one, where in zip(trained, went, strict=True):
            own = np.asarray(where[path]).ravel()
            assert len(set(own)) == len(own)
            total[own] += np.asarray(one[path], np.float64).ravel()
            holders[own] += 1
        assert (holders > 0).all() and (path in sides(config) or (holders == 4).all())
        np.testing.assert_allclose(np.asarray(after[path]).ravel(), total / holders, rtol=1e-5, atol=1e-6)


def test_a_unit_that_nobody_holds_stays_as_it_was():
    config = random_config("llama")
    units = units_of(config, [0.5], 32)
    kept = units.draw(jax.random.key(1), 0.5)
    small = {path: value + 1 for path, value in gather(central("llama"), kept, units).items()}
    after = averaged(central("llama"), [small], [kept], units)[MLP_OUT]
    gone = np.setdiff1d(np.arange(config.intermediate_size), np.asarray(kept.neurons[0]))
    np.testing.assert_array_equal(after[0, gone], central("llama")[MLP_OUT][0, gone])
    np.testing.assert_array_equal(
        after[0, np.asarray(kept.neurons[0])], central("llama")[MLP_OUT][0, np.asarray(kept.neurons[0])] + 1
    )


def test_an_outer_step_is_nesterovs_and_leaves_what_nobody_held():
    draw = np.random.default_rng(3)
    before, first, second = ({path: draw.normal(size=(4, 3)).astype(np.float32) for path in "ab"} for _ in range(3))
    held = {"a": np.array([[2.0], [0.0], [1.0], [0.0]], np.float32)}
    outer, velocity = Outer(0.9, 0.7), jax.tree.map(np.zeros_like, before)
    torch_like, momentum, after = dict(before), dict(velocity), before
    for mean in (first, second):
        for path, value in mean.items():
            change = value - torch_like[path]
            speed = 0.9 * momentum[path] + change
            new = torch_like[path] + 0.7 * (change + 0.9 * speed)
            mask = held["a"] > 0 if path == "a" else np.ones((4, 1), bool)
            momentum[path] = np.where(mask, speed, momentum[path])
            torch_like[path] = np.where(mask, new, torch_like[path])
        after, velocity = outer.step(after, mean, velocity, held)
        for path in "ab":
            np.testing.assert_allclose(after[path], torch_like[path], rtol=1e-6)
            np.testing.assert_allclose(velocity[path], momentum[path], rtol=1e-6)
    np.testing.assert_array_equal(after["a"][1::2], before["a"][1::2])
    plain, _ = Outer(0.0, 1.0).step(before, first, jax.tree.map(np.zeros_like, before), {})
    np.testing.assert_allclose(plain["a"], first["a"], rtol=1e-6, atol=1e-7)


@every_cuttable_family
def test_every_weight_is_one_that_files_name(family):
    config = random_config(family)
    assert set(sides(config)) < {weight.path for weight in weights(config)} == set(central(family))


def test_the_mean_over_all_subnetworks_of_a_corrected_branch_is_the_full_branch():
    """Exact over a whole deal of equal shares without overlap: every unit is held once, and S · kappa = 1."""
    config, shares = random_config("gpt2"), [0.25] * 4
    units = units_of(config, shares, 16)
    hands = units.deal(jax.random.key(2), shares)
    inner = jnp.asarray(np.random.default_rng(4).normal(size=config.intermediate_size), jnp.float32)
    full = inner @ central("gpt2")[MLP_OUT][0]
    branches = [
        inner[kept.neurons[0]]
        @ corrected(gather(central("gpt2"), kept, units), units, 0.25, "inverse", full=False)[MLP_OUT][0]
        for kept in hands
    ]
    np.testing.assert_allclose(sum(branches) / 4, full, atol=1e-5)


@pytest.mark.parametrize(
    ("correction", "full", "factor"),
    [("inverse", False, 2.0), ("inverse", True, 1.0), ("full", True, 0.5), ("full", False, 1.0), ("none", False, 1.0)],
)
def test_a_correction_touches_the_output_projections_alone(correction, full, factor):
    config = random_config("gpt2")
    units = units_of(config, [0.5], 32)
    found = corrected(central("gpt2"), units, 0.5, correction, full=full)
    for path, value in central("gpt2").items():
        own = factor if path in (ATTENTION_OUT, MLP_OUT) else 1.0
        np.testing.assert_array_equal(found[path], value * np.float32(own), path)
