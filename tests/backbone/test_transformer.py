"""Properties of the decoder that hold for every family, without another library to compare with."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import run, tiny, tokens

from backbone.config import FAMILIES, random_config
from backbone.names import projections, weights
from backbone.rope import RopeConfig, inverse_frequencies
from backbone.transformer import Transformer

ROUNDING = 2e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_separate_rows(family):
    model = tiny(family)
    first, second = tokens(1, 11), tokens(1, 14, seed=1)
    packed = np.concatenate((first, second, np.zeros((1, 3), np.int32)), axis=1)
    segments = np.asarray([[1] * 11 + [2] * 14 + [0] * 3], np.int32)
    alone = np.zeros((2, 28), np.int32)
    alone[0, :11], alone[1, :14] = first, second
    together, apart = run(model, packed, None, segments), run(model, alone)
    np.testing.assert_allclose(together[0, :11], apart[0, :11], atol=ROUNDING)
    np.testing.assert_allclose(together[0, 11:25], apart[1, :14], atol=ROUNDING)
    assert np.isfinite(together).all()
    places = np.asarray([[*range(11), *range(14), 0, 0, 0]], np.int32)
    np.testing.assert_allclose(run(model, packed, places, segments)[0, :25], together[0, :25], atol=ROUNDING)


@given(cut=st.integers(1, 19), seed=st.integers(0, 9))
@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_later_tokens_and_padding_change_nothing_before_them(family, cut, seed):
    row = tokens(1, 20)
    other = row.copy()
    other[:, cut:] = tokens(1, 20 - cut, seed=seed + 10)
    model = tiny(family)
    before, after = run(model, row), run(model, other)
    np.testing.assert_array_equal(before[:, :cut], after[:, :cut])


def test_a_window_hides_what_lies_behind_it():
    model = tiny("mistral")
    row = tokens(1, 20)
    other = row.copy()
    other[:, 0] += 1
    before, after = run(model, row), run(model, other)
    reach = random_config("mistral").num_layers * (random_config("mistral").sliding_window - 1)
    assert reach < 22
    np.testing.assert_array_equal(before[:, reach + 1 :], after[:, reach + 1 :])
    assert np.abs(before[:, 7] - after[:, 7]).max() > 1e-3


class Nudge(nnx.Variable):
    """A kind of Variable the backbone has never heard of."""


class Nudged(nnx.Module):
    """Stands in for a projection."""

    def __init__(self, base, layers):
        self.base = base
        self.nudge = Nudge(jax.random.normal(jax.random.key(5), (layers, base.out_features)))

    def __call__(self, x, routing=None):
        y = self.base(x, routing)
        return y if routing is None else y + routing[:, None, None] * self.nudge[...][None, None, :]


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_a_foreign_module_in_place_of_a_projection_is_scanned_and_differentiated(remat):
    row, routing = tokens(2, 9), jnp.asarray([1.0, 0.0])
    plain = tiny("qwen2")
    biased = tiny("qwen2")
    layers = random_config("qwen2").num_layers
    adapted = tiny("qwen2", remat=remat)
    adapted.layers.self_attn.q_proj = Nudged(adapted.layers.self_attn.q_proj, layers)
    nudge = adapted.layers.self_attn.q_proj.nudge[...]
    biased.layers.self_attn.q_proj.bias[...] += nudge
    out = run(adapted, row, None, None, routing)
    np.testing.assert_allclose(out[0], run(biased, row)[0], atol=ROUNDING)
    np.testing.assert_allclose(out[1], run(plain, row)[1], atol=ROUNDING)
    np.testing.assert_array_equal(run(adapted, row), run(plain, row))

    graph, trained, frozen = nnx.split(adapted, Nudge, ...)
    loss = jax.jit(lambda t: jnp.sum(jnp.square(nnx.merge(graph, t, frozen)(row, routing=routing))[:, -1]))
    (gradient,) = jax.tree.leaves(jax.grad(loss)(trained))
    assert gradient.shape == nudge.shape
    step = 1e-2 * gradient / jnp.linalg.norm(gradient)
    ahead, behind = (loss(jax.tree.map(lambda x, s=sign: x + s * step, trained)) for sign in (1.0, -1.0))
    np.testing.assert_allclose((ahead - behind) / 2e-2, jnp.linalg.norm(gradient), rtol=2e-2)


@pytest.mark.parametrize("remat", ["full", "dots"])
@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_recomputing_changes_no_gradient(family, remat):
    row = tokens(2, 20)

    def gradient(model):
        graph, state = nnx.split(model)
        return jax.jit(jax.grad(lambda s: jnp.sum(jnp.sin(nnx.merge(graph, s)(row)))))(state)

    jax.tree.map(
        partial(np.testing.assert_allclose, atol=5e-4), gradient(tiny(family)), gradient(tiny(family, remat=remat))
    )


def test_layers_are_scanned_not_unrolled():
    model = tiny("llama")
    graph, state = nnx.split(model)
    jaxpr = jax.make_jaxpr(lambda s, t: nnx.merge(graph, s)(t))(state, tokens(1, 8))
    scans = [equation for equation in jaxpr.jaxpr.eqns if equation.primitive.name == "scan"]
    assert [scan.params["length"] for scan in scans] == [random_config("llama").num_layers]


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_stays_half_outside_the_norms(family):
    row = tokens(1, 12)
    half, full = run(tiny(family, dtype=jnp.bfloat16), row), run(tiny(family), row)
    assert half.dtype == jnp.bfloat16
    assert np.abs(half.astype(np.float32) - full).max() < 0.1 * np.abs(full).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weight_map_names_every_variable_once(family):
    config = random_config(family)
    found = {path: value.shape for path, value in variables_of(config).items()}
    mapped = {w.path: ((config.num_layers,) if w.per_layer else ()) + w.shape for w in weights(config)}
    assert mapped == found
    assert len({w.hf for w in weights(config)}) == len(weights(config))
    for key, projection in projections(config).items():
        assert found[f"layers.{key}.kernel"][1:] == (projection.in_features, projection.out_features)
        assert (f"layers.{key}.bias" in found) == projection.bias


def variables_of(config):
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return {".".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(nnx.state(model))}


def test_rows_longer_than_the_table_of_positions_are_refused():
    with pytest.raises(ValueError, match="129 tokens, but there are 128 positions"):
        tiny("gpt2")(tokens(1, 129))


def test_an_unknown_remat_is_refused():
    with pytest.raises(ValueError, match="remat='some'; expected one of none, full, dots"):
        tiny("llama", remat="some")


def test_llama3_scaling_keeps_short_wavelengths_and_divides_long_ones():
    rope = RopeConfig(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    plain, scaled = inverse_frequencies(RopeConfig(500_000.0), 128), inverse_frequencies(rope, 128)
    wavelengths = 2 * np.pi / plain
    ratio = plain / scaled
    np.testing.assert_allclose(ratio[wavelengths < 8192 / 4], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[wavelengths > 8192], 8.0, rtol=1e-6)
    between = ratio[(wavelengths > 8192 / 4) & (wavelengths < 8192)]
    assert between.size
    assert ((between > 1) & (between < 8)).all()
