"""Properties of the decoder that hold for every family, without another library to compare with."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import UNLIKE, every_family, unlike_families
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ROWS, run, tiny, tokens

from jaxlm.families.names import projections, weights
from jaxlm.families.registry import FAMILIES, random_config
from jaxlm.families.rope import RopeConfig, inverse_frequencies
from jaxlm.models.mixers.row_texts import RowTexts, attend_texts
from jaxlm.models.transformer import Transformer

ROUNDING = 2e-5


TEXTS = {(0, 0): slice(0, 9), (0, 1): slice(9, 24), (1, 0): slice(0, 14), (1, 1): slice(16, 24)}
"""The texts of two rows, by row and number; the first of the second row is padded."""
BEGINS = np.array([[0, 9, 24], [0, 16, 24]], np.int32)


@every_family
def test_texts_that_share_a_row_are_as_if_each_had_its_own(family):
    assert_apart(family, None)


@pytest.mark.parametrize("family", [*UNLIKE, pytest.param("gpt_oss", marks=pytest.mark.slow)])
def test_texts_of_several_owners_that_share_a_row_are_as_if_each_had_its_own(family):
    assert_apart(family, np.array([[0, 0, 0], [4, 4, 1]], np.int32))


def assert_apart(family, owners):
    model, packed = tiny(family), tokens(*ROWS)
    together = run(model, packed, RowTexts(BEGINS, owners))
    assert np.isfinite(together).all()
    for first, second in (((0, 0), (1, 0)), ((0, 1), (1, 1))):
        alone = np.zeros(ROWS, np.int32)
        for at, key in enumerate((first, second)):
            alone[at, : TEXTS[key].stop - TEXTS[key].start] = packed[key[0], TEXTS[key]]
        apart = run(model, alone)
        for at, key in enumerate((first, second)):
            length = TEXTS[key].stop - TEXTS[key].start
            np.testing.assert_allclose(together[key[0], TEXTS[key]], apart[at, :length], atol=ROUNDING)


def test_owners_that_share_a_row_mix_nothing_not_even_times_zero():
    random = np.random.default_rng(0)
    q, k, v, pull = (random.standard_normal((1, 24, heads, 8)).astype(np.float32) for heads in (4, 2, 2, 4))
    texts = RowTexts(np.array([[0, 8, 24]], np.int32), np.array([[3, 1, 1]], np.int32))

    def mixed(*operands):
        value, pulled = jax.vjp(lambda *own: attend_texts(*own, texts=texts, scale=0.3), *operands[:3])
        return [value, *pulled(operands[3])]

    healthy = mixed(q, k, v, pull)
    poisoned = [array.copy() for array in (q, k, v, pull)]
    for array in poisoned:
        array[:, 8:] = np.nan
    for before, after in zip(healthy, mixed(*poisoned), strict=True):
        np.testing.assert_array_equal(before[:, :8], after[:, :8])
        assert np.isnan(after[:, 8:]).all()


def test_bounded_scores_of_long_rows_are_computed_a_block_at_a_time():
    length, window = 200, 150
    random = np.random.default_rng(0)
    q, k, v, pull = (random.standard_normal((1, length, 2, 8)).astype(np.float32) for _ in range(4))
    texts = RowTexts(np.array([[0, 30]], np.int32))

    def ours(q, k, v):
        return attend_texts(q, k, v, texts=texts, scale=0.5, window=window, softcap=1.5)

    def plain(q, k, v):
        scores = 1.5 * jnp.tanh(0.5 * jnp.einsum("bthd,bshd->bhts", q, k) / 1.5)
        at, text = np.arange(length), np.arange(length) >= 30
        distance = at[:, None] - at[None, :]
        seen = (distance >= 0) & (distance < window) & (text[:, None] == text[None, :])
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), v)

    def both(mixed):
        def run(q, k, v):
            value, back = jax.vjp(mixed, q, k, v)
            return value, *back(pull)

        return jax.jit(run)

    for one, other in zip(both(ours)(q, k, v), both(plain)(q, k, v), strict=True):
        np.testing.assert_allclose(one, other, atol=ROUNDING)
    shapes = str(jax.make_jaxpr(both(ours))(q, k, v))
    assert "f32[1,2,1,128,128]" in shapes and "f32[1,2,1,200,200]" not in shapes


@given(cut=st.integers(1, 23), seed=st.integers(1, 99))
@settings(max_examples=10, deadline=None)
@every_family
def test_later_tokens_and_padding_change_nothing_before_them(family, cut, seed):
    rows = tokens(*ROWS)
    other = rows.copy()
    other[:, cut:] = tokens(2, 24 - cut, seed=seed)
    before, after = run(tiny(family), rows), run(tiny(family), other)
    np.testing.assert_array_equal(before[:, :cut], after[:, :cut])


def test_a_window_hides_what_lies_behind_it():
    model, config = tiny("mistral"), random_config("mistral")
    rows = tokens(*ROWS)
    other = rows.copy()
    other[:, 0] += 1
    before, after = run(model, rows), run(model, other)
    reach = config.num_layers * (config.sliding_window - 1)
    assert reach < 23
    np.testing.assert_array_equal(before[:, reach + 1 :], after[:, reach + 1 :])
    assert np.abs(before[:, 7] - after[:, 7]).max() > 1e-3


class Nudge(nnx.Variable):
    """A kind of Variable the transformer has never heard of."""


class Nudged(nnx.Module):
    """Stands in for a projection."""

    def __init__(self, base, layers):
        self.base = base
        self.nudge = Nudge(jax.random.normal(jax.random.key(5), (layers, base.out_features)))

    def __call__(self, x, routing=None):
        y = self.base(x, routing)
        return y if routing is None else y + routing[:, None, None] * self.nudge[...][None, None, :]


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_a_foreign_module_in_place_of_a_projection_is_scanned_and_differentiated(remat):
    row, routing = tokens(*ROWS), jnp.asarray([1.0, 0.0])
    plain, biased = tiny("qwen2"), tiny("qwen2")
    layers = random_config("qwen2").num_layers
    adapted = tiny("qwen2", remat=remat)
    adapted.layers.self_attn.q_proj = Nudged(adapted.layers.self_attn.q_proj, layers)
    nudge = adapted.layers.self_attn.q_proj.nudge[...]
    biased.layers.self_attn.q_proj.bias[...] += nudge
    out = run(adapted, row, None, routing)
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


@cache
def gradient(**kinds) -> nnx.State:
    """Of Gemma 3, whose layers are not all alike."""
    graph, state = nnx.split(tiny("gemma3", **kinds))
    return jax.jit(jax.grad(lambda s: jnp.sum(jnp.sin(nnx.merge(graph, s)(tokens(*ROWS))))))(state)


def assert_close(one: nnx.State, other: nnx.State) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, atol=5e-4), one, other)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputing_changes_no_gradient(remat):
    assert_close(gradient(), gradient(remat=remat))


@pytest.mark.slow
def test_layers_compiled_in_place_compute_what_scanned_ones_do():
    row = tokens(*ROWS)
    scanned, in_place = tiny("gemma3"), tiny("gemma3", scan_layers=False)
    np.testing.assert_allclose(run(in_place, row), run(scanned, row), atol=ROUNDING)
    assert_close(gradient(), gradient(scan_layers=False))


def test_layers_are_scanned_not_unrolled():
    model = tiny("llama")
    graph, state = nnx.split(model)
    jaxpr = jax.make_jaxpr(lambda s, t: nnx.merge(graph, s)(t))(state, tokens(1, 8))
    scans = [equation for equation in jaxpr.jaxpr.eqns if equation.primitive.name == "scan"]
    assert [scan.params["length"] for scan in scans] == [random_config("llama").num_layers]


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_layers_compiled_in_place_are_traced_once(remat):
    model = tiny("llama", remat=remat, scan_layers=False)
    graph, state = nnx.split(model)
    jaxpr = jax.make_jaxpr(lambda s, t: nnx.merge(graph, s)(t))(state, tokens(1, 8))
    layers = [one.params["jaxpr"] for one in jaxpr.jaxpr.eqns if one.params.get("name") == "run_layer"]
    assert len(layers) == random_config("llama").num_layers > 1
    assert len({id(layer) for layer in layers}) == 1


@unlike_families
def test_half_precision_stays_half_outside_the_norms(family):
    row = tokens(*ROWS)
    half, full = run(tiny(family, dtype=jnp.bfloat16), row), run(tiny(family), row)
    assert half.dtype == jnp.bfloat16
    assert np.abs(half.astype(np.float32) - full).max() < 0.1 * np.abs(full).max()


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_half_precision_has_gradients_under_strict_dtypes(family):
    row = tokens(*ROWS)
    graph, state = nnx.split(tiny(family, dtype=jnp.bfloat16))
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(nnx.merge(graph, s)(row).astype(jnp.float32))))(state)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weight_map_names_every_variable_once(family):
    config = random_config(family)
    found = {path: value.shape for path, value in variables_of(config).items()}
    mapped = {w.path: ((len(w.layers),) if w.layers is not None else ()) + w.shape for w in weights(config)}
    assert mapped == found
    named = [w.hf.replace("{i}", str(i)) for w in weights(config) for i in (w.layers or [0])]
    assert len(set(named)) == len(named)
    for projection in projections(config).values():
        path = f"{projection.stack}.{projection.inside}"
        assert found[f"{path}.kernel"][1:] == (projection.in_features, projection.out_features)
        assert (f"{path}.bias" in found) == projection.bias


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
