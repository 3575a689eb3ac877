"""Adapters of experts: each row meets the one of its expert and slot, and no other, not even times zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from altojax.device.multi_lora.experts import grouped_lora
from jaxlm.models.experts import sort_by_slot, take_rows

EXPERTS, SLOTS, IN, RANK, OUT = 5, 3, 8, 2, 6


@jax.jit
def products(x, a, b, scale, chosen, slots):
    order = sort_by_slot(chosen, EXPERTS, slots, SLOTS)
    rows = take_rows(x, order.places // chosen.shape[1], order.rows)
    made = grouped_lora(rows, a, b, scale, order, EXPERTS)
    return take_rows(made, order.rows.reshape(-1), order.places[:, None]).reshape(*chosen.shape, OUT)


def one_by_one(x, a, b, scale, chosen, slots):
    a, b = a.reshape(SLOTS, IN, EXPERTS, RANK), b.reshape(SLOTS, RANK, OUT, EXPERTS)
    own_a, own_b = a[slots[:, None], :, chosen], b[slots[:, None], :, :, chosen]
    return scale[slots][:, None, None] * jnp.einsum("nd,nkdr,nkrf->nkf", x, own_a, own_b)


def operands(tokens, seed=0):
    random = np.random.default_rng(seed)
    shapes = ((tokens, IN), (SLOTS, IN * EXPERTS, RANK), (SLOTS, RANK, OUT * EXPERTS), (SLOTS,))
    chosen = np.argsort(random.random((tokens, EXPERTS)), axis=1)[:, :2].astype(np.int32)
    slots = np.sort(random.integers(0, SLOTS, tokens)).astype(np.int32)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes], chosen, slots


@pytest.mark.parametrize("tokens", [1, 150])
@pytest.mark.parametrize("crowded", [False, True])
def test_products_and_all_gradients_are_those_of_each_row_alone(tokens, crowded):
    arrays, chosen, slots = operands(tokens)
    if crowded:
        chosen = np.full_like(chosen, 3) - np.arange(2, dtype=np.int32)[None, :]
    pull = np.random.default_rng(1).standard_normal((tokens, 2, OUT)).astype(np.float32)
    found, back = jax.vjp(lambda *arrays: products(*arrays, chosen, slots), *arrays)
    wanted, back_wanted = jax.vjp(lambda *arrays: one_by_one(*arrays, chosen, slots), *arrays)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    for mine, theirs in zip(back(pull), back_wanted(pull), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * max(1.0, float(np.abs(theirs).max())))


@pytest.mark.parametrize("half", [1, 2])
def test_what_is_not_finite_in_a_slot_stays_there(half):
    arrays, chosen, slots = operands(150)
    pull = np.ones((150, 2, OUT), np.float32)
    found, back = jax.vjp(lambda *arrays: products(*arrays, chosen, slots), *arrays)
    sick = list(arrays)
    sick[half] = np.where(np.arange(SLOTS)[:, None, None] == 1, np.float32(np.nan), arrays[half])
    ill, back_ill = jax.vjp(lambda *arrays: products(*arrays, chosen, slots), *sick)
    assert np.isnan(ill[slots == 1]).all()
    well = slots != 1
    np.testing.assert_array_equal(ill[well], found[well])
    (dx, *rest), (dx_ill, *rest_ill) = back(pull), back_ill(pull)
    np.testing.assert_array_equal(dx_ill[well], dx[well])
    for mine, theirs in zip(rest, rest_ill, strict=True):
        np.testing.assert_array_equal(theirs[np.array([0, 2])], mine[np.array([0, 2])])
