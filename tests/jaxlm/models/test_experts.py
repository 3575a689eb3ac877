"""Each token meets its own experts and no other, however unevenly they are chosen."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.families.names import weights
from jaxlm.families.projections import token_parameters
from jaxlm.families.registry import random_config
from jaxlm.models.experts import TOGETHER_BYTES, choose, grouped_product, sort_tokens, take_rows

EXPERTS, IN, OUT = 5, 8, 12


def products(x, w, chosen):
    order = sort_tokens(chosen, EXPERTS)
    rows = take_rows(x, order.places // chosen.shape[1], order.rows)
    made = grouped_product(order.tile, rows, w, order.tiles)
    return take_rows(made, order.rows.reshape(-1), order.places[:, None]).reshape(*chosen.shape, OUT)


@pytest.mark.parametrize(("tokens", "together"), [(1, 1), (37, 1), (37, 4)])
def test_products_and_their_gradient_are_those_of_each_token_alone(tokens, together, monkeypatch):
    monkeypatch.setitem(TOGETHER_BYTES, "cpu", together * 4 * IN * OUT)
    random = np.random.default_rng(tokens)
    x = random.standard_normal((tokens, IN)).astype(np.float32)
    w = random.standard_normal((EXPERTS, IN, OUT)).astype(np.float32)
    even = np.argsort(random.random((tokens, EXPERTS)), axis=1)[:, :2].astype(np.int32)
    pull = random.standard_normal((tokens, 2, OUT)).astype(np.float32)
    for chosen in (even, np.full_like(even, 3) - np.arange(2, dtype=np.int32)[None, :]):
        found, back = jax.vjp(jax.jit(lambda x, chosen=chosen: products(x, w, jnp.asarray(chosen))), x)
        np.testing.assert_allclose(found, np.einsum("nd,nkdf->nkf", x, w[chosen]), atol=1e-5)
        np.testing.assert_allclose(back(pull)[0], np.einsum("nkf,nkdf->nd", pull, w[chosen]), atol=1e-5)


def test_weights_of_a_token_add_up_to_one_only_where_they_are_normed():
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.4], [0.2, 0.2, 0.6]], jnp.float32))
    for normed, wanted in ((False, [[0.5, 0.4], [0.6, 0.2]]), (True, [[5 / 9, 4 / 9], [0.75, 0.25]])):
        weights, chosen = choose(logits, 2, normed=normed)
        np.testing.assert_allclose(weights, wanted, rtol=1e-6)
        np.testing.assert_array_equal(chosen, [[1, 2], [2, 0]])


@pytest.mark.parametrize(
    ("family", "sizes", "billions"),
    [
        ("qwen3_moe", (151_936, 2048, 768, 48, 32, 4, 128, 128, 8), (30.5, 3.3)),
        ("mixtral", (32_000, 4096, 14_336, 32, 32, 8, 128, 8, 2), (46.7, 12.9)),
        ("gpt_oss", (201_088, 2880, 2880, 24, 64, 8, 64, 32, 4), (20.9, 3.6)),
    ],
)
def test_parameters_are_as_many_as_was_published_stored_and_met_by_a_token(family, sizes, billions):
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    shape = dict(zip((*names, "experts", "active_experts"), sizes, strict=True))
    config = replace(random_config(family), **shape, sliding_pattern=None)
    stored = sum(math.prod(one.shape) * len(one.entries) for one in weights(config))
    tables = (1 if family == "gpt_oss" else 2) * config.vocab_size * config.hidden_size  # its count leaves one out
    met = token_parameters(config) + tables
    assert (stored / 1e9, met / 1e9) == pytest.approx(billions, abs=0.06)
