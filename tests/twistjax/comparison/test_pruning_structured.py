"""Calibration sees what projections see; structured scores keep what is large."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import every_cuttable_family, every_dense_family
from flax import nnx

from jaxlm.families.registry import random_config
from jaxlm.models.functional import Functional, weights_by_path
from jaxlm.models.transformer import Transformer
from twistjax.calibration import Walk, calibrate
from twistjax.comparison.pruning.structured import choose_units
from twistjax.training.gather_scatter import ATTENTION_OUT, MLP_OUT
from twistjax.training.units import units_of

ROWS = np.random.default_rng(0).integers(0, 256, (6, 16)).astype(np.int32)


def start(config):
    model = Transformer(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    return weights_by_path(model, jnp.float32)


@every_dense_family
def test_a_walk_ends_where_the_model_ends(family):
    config = random_config(family)
    weights = start(config)
    walk = Walk(config, weights, ROWS)
    for stack, place in walk.layers:
        walk.advance(stack, place, walk.layer(stack, place))
    model = Functional(config).bind(weights)
    walked = np.concatenate([np.asarray(model.norm(state)) for state in walk._states])
    np.testing.assert_allclose(walked, model(jnp.asarray(ROWS)), atol=1e-5)


@every_cuttable_family
def test_statistics_are_of_what_reaches_each_projection(family):
    config = random_config(family)
    weights = start(config)
    found = calibrate(config, weights, ROWS)
    assert len(found) == config.num_layers
    hidden = Functional(replace(config, num_layers=1, sliding_pattern=None, rope_pattern=None)).bind(
        {path: value[:1] if path.startswith("layers.") else value for path, value in weights.items()}
    )
    positions = jnp.broadcast_to(jnp.arange(16, dtype=jnp.int32)[None, :], ROWS.shape)
    states = np.asarray(hidden.embed(jnp.asarray(ROWS), positions), np.float64)
    first = nnx.merge(*nnx.split(hidden.layers))
    if config.pre_norms:
        scale = np.asarray(first.input_layernorm.scale[0]) + config.norm_offset
        centred = states - states.mean(-1, keepdims=True) if config.norm == "layer" else states
        states = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + config.norm_eps) * scale
    flat = states.reshape(-1, config.hidden_size)
    key = "self_attn.c_attn" if config.fused_qkv else "self_attn.q_proj"
    np.testing.assert_allclose(found[0][key], flat.T @ flat / len(flat), atol=1e-4)


def test_later_layers_see_what_changed_ones_made():
    config = random_config("llama")
    walk = Walk(config, start(config), ROWS)
    (one, first), (two, second), *_ = walk.layers
    layer = walk.layer(one, first)
    walk.advance(one, first, {**layer, "mlp.down_proj.kernel": jnp.zeros_like(layer["mlp.down_proj.kernel"])})
    changed = walk.statistics(two, second, walk.layer(two, second))
    plain = calibrate(config, start(config), ROWS)[1]
    assert np.abs(np.asarray(changed["mlp.up_proj"] - plain["mlp.up_proj"])).max() > 1e-3


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
@pytest.mark.parametrize(("family", "kappa"), [("gpt2", 0.5), ("llama", 0.5), ("llama", 0.4)])
def test_units_that_are_all_zero_go_first(method, family, kappa):
    config = replace(random_config(family), num_heads=8, num_kv_heads=8 if family == "gpt2" else 2, head_dim=8)
    units = units_of(config, [kappa], 16, (1, 0))
    weights = start(config)
    kept = units.draw(jax.random.key(4), kappa)
    for path, index, size in ((ATTENTION_OUT, kept.heads, 8), (MLP_OUT, kept.neurons, 1)):
        loud = np.full((config.num_layers, weights[path].shape[1] // size, size, 1), 1e-3, np.float32)
        for layer, row in enumerate(np.asarray(index)):
            loud[layer + 1, row] = 100.0
        weights[path] = weights[path] * loud.reshape(config.num_layers, -1, 1)
    chosen = choose_units(weights, units, kappa, method, calibrate(config, weights, ROWS))
    for ours, wanted in zip(chosen, kept, strict=True):
        np.testing.assert_array_equal(ours, wanted)
