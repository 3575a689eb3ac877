"""Dropout masks are functions of (token key, feature): the same wherever and however often they are made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import Dropout, lora_matmul, token_keys, token_seeds
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.dropout import drop, keep_mask, mix

ROWS, LENGTH, K, N, RANK = 4, 3, 16, 5, 2
TILE_SLOTS = jnp.array([0, 1, 1, 2], jnp.int32)
RATE = np.array([0.25, 0.0, 0.5], np.float32)
SMALL = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((ROWS * LENGTH, K), (K, N), (3, K, RANK))]
every_implementation = pytest.mark.parametrize(
    "implementation", [name for name, one in IMPLEMENTATIONS.items() if not one.operands(*SMALL, ROWS)]
)


def row_keys(seed: int, rows: int = ROWS) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2**32, rows, np.uint32))


def keys_of(rows: jax.Array, length: int) -> jax.Array:
    """The keys of the tokens of rows, [rows, length]."""
    return token_keys(jnp.stack([token_seeds(int(key), length) for key in rows]), jnp.uint32(7))


def make(seed: int = 0):
    draw = np.random.default_rng(seed)
    shapes = ((ROWS * LENGTH, K), (K, N), (3, K, RANK), (3, RANK, N))
    x, w, a, b = (jnp.asarray(draw.standard_normal(shape).astype(np.float32)) for shape in shapes)
    dropout = Dropout(jnp.asarray(RATE), keys_of(row_keys(seed), LENGTH).reshape(-1))
    return x, w, a, b, jnp.array([2.0, 1.0, 0.5], jnp.float32), dropout


def kept(dropout: Dropout) -> np.ndarray:
    rate = jnp.repeat(dropout.rate[TILE_SLOTS], LENGTH)
    return np.asarray(keep_mask(dropout.token_keys, rate, K))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 8))
def test_a_tokens_mask_does_not_depend_on_the_length_its_row_is_padded_to(seed, length, more):
    short, long = keys_of(row_keys(seed), length), keys_of(row_keys(seed), length + more)
    np.testing.assert_array_equal(short, long[:, :length])
    half = jnp.full(ROWS * length, 0.5, jnp.float32)
    np.testing.assert_array_equal(
        keep_mask(short.reshape(-1), half, K), keep_mask(long[:, :length].reshape(-1), half, K)
    )


def test_tokens_of_a_batch_get_keys_of_their_own():
    keys = np.asarray(keys_of(row_keys(1, 64), 64))
    assert np.unique(keys).size == keys.size


def test_mixing_is_a_bijection_on_a_sample():
    bits = jnp.arange(2**16, dtype=jnp.uint32)
    assert np.unique(np.asarray(mix(bits))).size == bits.size


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_the_share_kept_is_one_minus_the_rate_alone_and_in_pairs(rate):
    keys = keys_of(row_keys(2, 32), 32).reshape(-1)
    mask = np.asarray(keep_mask(keys, jnp.full(keys.shape, rate, jnp.float32), 64))
    keep = 1 - rate
    for found, expected in (
        (mask, keep),
        (mask[1:] & mask[:-1], keep**2),
        (mask[:, 1:] & mask[:, :-1], keep**2),
    ):
        spread = np.sqrt(3 * expected * (1 - expected) / found.size)  # neighbouring pairs share a draw: at most thrice
        assert abs(found.mean() - expected) < 4 * spread


def test_a_slot_of_rate_zero_gets_its_input_back_bit_for_bit():
    x, *_, dropout = make()
    dropped = np.asarray(drop(x, dropout, TILE_SLOTS)).reshape(ROWS, LENGTH, K)
    own = np.asarray(x).reshape(ROWS, LENGTH, K)
    np.testing.assert_array_equal(dropped[1:3].view(np.uint32), own[1:3].view(np.uint32))
    assert (dropped[[0, 3]] == 0).any()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_is_kept_is_scaled_so_that_the_mean_stays(seed):
    x, *_, dropout = make(seed)
    rate = np.repeat(RATE[np.asarray(TILE_SLOTS)], LENGTH)[:, None]
    expected = np.where(kept(dropout), np.asarray(x) / (1 - rate), 0)
    np.testing.assert_allclose(drop(x, dropout, TILE_SLOTS), expected, rtol=2**-22)


@every_implementation
def test_dropout_acts_on_the_adapters_input_and_never_on_the_base(implementation):
    x, w, a, b, scale, dropout = make(3)
    run = {"dropout": dropout, "implementation": implementation}
    identity = lora_matmul(x, w, a, jnp.zeros_like(b), scale, TILE_SLOTS, **run)
    np.testing.assert_array_equal(identity, x @ w)
    found = np.asarray(lora_matmul(x, w, a, b, scale, TILE_SLOTS, **run))
    slots = np.repeat(np.asarray(TILE_SLOTS), LENGTH)
    own_x, own_w, own_a, own_b, own_scale = (np.asarray(value, np.float64) for value in (x, w, a, b, scale))
    source = np.where(kept(dropout), own_x / (1 - RATE[slots, None].astype(np.float64)), 0)
    delta = np.einsum("tk,tkr,trn->tn", source, own_a[slots], own_b[slots]) * own_scale[slots, None]
    np.testing.assert_allclose(found, own_x @ own_w + delta, rtol=1e-5, atol=1e-5)


@every_implementation
def test_the_backward_pass_drops_what_the_forward_pass_dropped(implementation):
    x, w, a, b, scale, dropout = make(4)

    def total(x):
        y = lora_matmul(x, jnp.zeros_like(w), a, b, scale, TILE_SLOTS, dropout=dropout, implementation=implementation)
        return jnp.sum(y)

    gradient = np.asarray(jax.grad(total)(x))
    np.testing.assert_array_equal(gradient != 0, kept(dropout))


@every_implementation
def test_dropped_features_teach_nothing_to_their_rows_of_a(implementation):
    """A token alone in its slot: the gradient of A's row k is zero exactly where feature k was dropped."""
    x, w, a, b, scale, _ = make(5)
    dropout = Dropout(jnp.full(3, 0.5, jnp.float32), keys_of(row_keys(5), 1).reshape(-1)[:3])
    slots = jnp.arange(3, dtype=jnp.int32)

    def total(a):
        return jnp.sum(lora_matmul(x[:3], w, a, b, scale, slots, dropout=dropout, implementation=implementation))

    taught = np.asarray(jax.grad(total)(a)).any(axis=2)
    np.testing.assert_array_equal(taught, keep_mask(dropout.token_keys, dropout.rate, K))


@every_implementation
@pytest.mark.parametrize(("slots", "tokens"), [(2, ROWS * LENGTH), (3, ROWS * LENGTH - 1)])
def test_rates_and_keys_that_do_not_fit_are_refused(implementation, slots, tokens):
    x, w, a, b, scale, dropout = make()
    wrong = Dropout(dropout.rate[:slots], dropout.token_keys[:tokens])
    with pytest.raises(ValueError, match="shapes do not fit"):
        lora_matmul(x, w, a, b, scale, TILE_SLOTS, dropout=wrong, implementation=implementation)
