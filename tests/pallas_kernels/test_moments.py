"""Moments in fewer bits: what is read is kept to the bit, small changes add up, and ranks do not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import slot_updates
from pallas_kernels.moments import KINDS, dither_of, kept, read, zeros
from pallas_kernels.slot_updates import Trained, Update, Visited

SHAPES = {1: (2, 2, 192, 3), 0: (2, 2, 3, 40)}
"""Of an A, of three blocks a column, and of a B, of five blocks a row."""
FEWER = KINDS[1:]
keep, look = jax.jit(kept), jax.jit(read)


def drawn(seed: int, axis: int, *, signed: bool, spread: float = 3.0) -> np.ndarray:
    """Numbers of many sizes, some of them 0."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(SHAPES[axis]) * np.exp(spread * random.standard_normal(SHAPES[axis]))
    values[random.random(SHAPES[axis]) < 0.1] = 0
    return (values if signed else values**2).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("signed", [True, False])
@given(st.integers(0, 10**6), st.sampled_from([*SHAPES]), st.integers(-60, 60))
@settings(max_examples=15, deadline=None)
def test_what_is_read_is_kept_to_the_bit(kind, signed, seed, axis, exponent):
    """So a trial that is parked or saved, in float32, goes on as it was."""
    values = jnp.asarray(drawn(seed, axis, signed=signed) * np.float32(2.0**exponent))
    first = keep(values, zeros(values, axis, kind, signed=signed))
    again = keep(look(first), first)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("axis", SHAPES)
def test_eight_bits_are_within_a_level_of_what_they_stand_for(axis):
    for signed, level, reach in ((True, 2 ** (1 / 8), 2.0**-15), (False, 2 ** (1 / 12), 2.0**-21)):
        values = drawn(1, axis, signed=signed, spread=1.0)
        found = np.asarray(look(keep(jnp.asarray(values), zeros(jnp.asarray(values), axis, "int8", signed=signed))))
        whole = np.abs(values).max(axis=2 if axis == 1 else 3, keepdims=True)
        inside = np.abs(values) > reach * whole
        assert np.all(np.abs(found - values)[inside] <= (level - 1) / 2 * 1.001 * np.abs(values)[inside])
        assert np.array_equal(found[values == 0], values[values == 0]) and np.all(found[inside] * values[inside] > 0)


def test_a_second_moment_does_not_come_to_nothing_beside_a_large_one():
    """An update divides by its root."""
    values = jnp.ones(SHAPES[1]).at[:, :, 0].set(1e12)
    assert np.all(np.asarray(look(keep(values, zeros(values, 1, "int8", signed=False)))) > 0)


@pytest.mark.parametrize("kind", FEWER)
def test_rounding_keeps_the_mean_over_steps(kind):
    values, steps = jnp.asarray(drawn(2, 1, signed=True, spread=1.0)), 256

    @jax.jit
    def summed(values):
        like = zeros(values, 1, kind, signed=True)

        def add(step, total):
            return total + read(kept(values, like, dither_of(values.shape, jnp.full(2, step, jnp.int32), 1)))

        return jax.lax.fori_loop(0, steps, add, jnp.zeros_like(values))

    total = summed(values)
    level = {"bfloat16": 2.0**-7, "int8": 2 ** (1 / 8) - 1}[kind]
    off = np.abs(np.asarray(total) / steps - values) / np.maximum(np.abs(values), 1e-3 * np.abs(values).max())
    assert off.max() < 8 / steps * level, "dithers are spread far more evenly than chance would"


@pytest.mark.parametrize("kind", FEWER)
def test_changes_smaller_than_a_level_add_up(kind):
    """A second moment of beta2 0.999 falls by a third in 400 steps without a gradient; by nearest levels never."""
    one, weights = jnp.ones(2), jnp.zeros(SHAPES[1])
    update = Update(one, 0.9 * one, 0.999 * one, one, one, one, one, 0 * one)
    # A moment of each block stays the largest, so that the scale cannot fall for all of them.
    start = jnp.asarray(drawn(3, 1, signed=False, spread=1.0))
    start = start.at[:, :, ::64].set(jnp.max(start))

    def after(steps_of):
        nu = keep(start, zeros(weights, 1, kind, signed=False))
        gradient = jnp.zeros(SHAPES[1]).at[:, :, ::64].set(jnp.sqrt(jnp.max(start)))
        visited = Visited(jnp.ones(2, bool), jnp.full(2, 3, jnp.int32))
        trained = Trained(weights, zeros(weights, 1, kind, signed=True), nu)

        def turn(step, trained):
            return slot_updates.adamw(trained, 1, gradient, None, update, visited, steps_of(step))

        return look(jax.jit(lambda trained: jax.lax.fori_loop(0, 400, turn, trained))(trained).nu)

    inside = np.array(start > 1e-4 * start.max())
    inside[:, :, ::64] = False
    shares = {
        name: np.median((np.asarray(found) / start)[inside])
        for name, found in {
            "dithered": after(lambda step: jnp.full(2, step, jnp.int32)),
            "nearest": after(lambda step: None),
        }.items()
    }
    assert shares["dithered"] == pytest.approx(0.999**400, rel=0.1) and shares["nearest"] > 0.95


@pytest.mark.parametrize("kind", FEWER)
@pytest.mark.parametrize("axis", SHAPES)
def test_a_trial_s_moments_are_the_same_whatever_ranks_others_have(kind, axis):
    values, steps = jnp.asarray(drawn(4, axis, signed=True)), jnp.array([3, 3], jnp.int32)
    more = [(0, 0), (0, 0), (0, 0), (0, 5)] if axis == 1 else [(0, 0), (0, 0), (0, 5), (0, 0)]
    wide = jnp.pad(values, more)
    own, beside = (
        look(keep(one, zeros(one, axis, kind, signed=True), dither_of(one.shape, steps, 1))) for one in (values, wide)
    )
    np.testing.assert_array_equal(own, beside[..., :3] if axis == 1 else beside[:, :, :3])
    assert np.array_equal(own[:, 0], own[:, 1]) == np.array_equal(values[:, 0], values[:, 1])
