"""Each token meets its own experts and no other, however unevenly they are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import tiny

from jaxlm.families.registry import random_config
from jaxlm.files.hf import save_model
from jaxlm.files.weights import load_model
from jaxlm.models.experts import choose, grouped_product, sort_tokens, take_rows
from jaxrun.process.errors import UserError

EXPERTS, IN, OUT = 5, 8, 12


@jax.jit
def products(x, w, chosen):
    order = sort_tokens(chosen, EXPERTS)
    rows = take_rows(x, order.places // chosen.shape[1], order.rows)
    made = grouped_product(order.tile, rows, w, order.tiles)
    return take_rows(made, order.rows.reshape(-1), order.places[:, None]).reshape(*chosen.shape, OUT)


@pytest.mark.parametrize("tokens", [1, 37])
def test_products_and_their_gradient_are_those_of_each_token_alone(tokens):
    random = np.random.default_rng(tokens)
    x = random.standard_normal((tokens, IN)).astype(np.float32)
    w = random.standard_normal((EXPERTS, IN, OUT)).astype(np.float32)
    even = np.argsort(random.random((tokens, EXPERTS)), axis=1)[:, :2].astype(np.int32)
    pull = random.standard_normal((tokens, 2, OUT)).astype(np.float32)
    for chosen in (even, np.full_like(even, 3) - np.arange(2, dtype=np.int32)[None, :]):
        found, back = jax.vjp(lambda x, chosen=chosen: products(x, w, chosen), x)
        np.testing.assert_allclose(found, np.einsum("nd,nkdf->nkf", x, w[chosen]), atol=1e-5)
        np.testing.assert_allclose(back(pull)[0], np.einsum("nkf,nkdf->nd", pull, w[chosen]), atol=1e-5)


def test_weights_of_a_token_add_up_to_one_only_where_they_are_normed():
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.4], [0.2, 0.2, 0.6]], jnp.float32))
    for normed, wanted in ((False, [[0.5, 0.4], [0.6, 0.2]]), (True, [[5 / 9, 4 / 9], [0.75, 0.25]])):
        weights, chosen = choose(logits, 2, normed=normed)
        np.testing.assert_allclose(weights, wanted, rtol=1e-6)
        np.testing.assert_array_equal(chosen, [[1, 2], [2, 0]])


def test_a_packed_format_of_experts_is_refused(tmp_path):
    config = random_config("mixtral")
    save_model(tmp_path / "m", config, tiny("mixtral"), dtype=jnp.float32)
    with pytest.raises(UserError, match="a mixture of 4 experts, expected a dense model to pack"):
        load_model(tmp_path / "m", dtype=jnp.float32, pack=lambda matrix: pytest.fail("packed"))
