"""An optimizer's passes over slots: Triton's kernels do what XLA does, to the slots that take part alone."""

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is for Linux")
import jax
import jax.numpy as jnp
from triton_interpreter import simulated_ampere

from pallas_kernels import slot_updates
from pallas_kernels.slot_updates import Half, Trained, Update, Visited
from pallas_kernels.triton import updates

SLOTS, RANK = 4, 8
SHAPES = {1: (2, SLOTS, 40, RANK), 0: (3, SLOTS, RANK, 150)}
"""Of an A and a B, by the axis of the rank; the second has more numbers than a block of 1,024, and an odd end."""
VISITED = Visited(jnp.array([True, False, True, False]), jnp.array([8, 8, 3, 2], jnp.int32))


@pytest.fixture(autouse=True)
def kernels():
    with simulated_ampere(2):
        yield


def within(array, axis):
    """The numbers of each slot that lie within its rank; NaN beyond the ranks and in slots that take no part."""
    array = np.array(array)
    for slot, rank in enumerate(VISITED.ranks):
        array[:, slot][(slice(None), *([slice(None)] * axis), slice(int(rank), None))] = 0
    return array


def drawn(seed, axis, *, beyond=0.0):
    """Random numbers within the rank, and `beyond` in slots that take no part."""
    array = within(np.random.default_rng(seed).standard_normal(SHAPES[axis]).astype(np.float32), axis)
    array[:, ~np.asarray(VISITED.which)] += beyond
    return jnp.asarray(array)


def same_elsewhere(new, old):
    others = ~np.asarray(VISITED.which)
    return np.array_equal(np.asarray(new)[:, others], np.asarray(old)[:, others], equal_nan=True)


PLACED = {"in the slots' order": None, "in places of their own": jnp.array([1, 2, 0, 3], jnp.int32)}
"""Of gradients; in the second case of two slots alone."""


def placed(array, places):
    return array if places is None else jnp.stack([array[:, 2], array[:, 0]], axis=1)


@pytest.mark.parametrize("places", PLACED.values(), ids=PLACED)
@pytest.mark.parametrize("axis", SHAPES)
def test_a_step_is_the_reference_s_where_a_slot_takes_part_and_nothing_elsewhere(axis, places):
    w, mu = drawn(0, axis, beyond=np.nan), drawn(1, axis, beyond=np.nan)
    trained = Trained(w, mu, jnp.square(drawn(2, axis)), (drawn(3, axis),))
    numbers = np.random.default_rng(4).uniform(0.1, 0.9, (9, SLOTS)).astype(np.float32)
    update = Update(*map(jnp.asarray, numbers[:8]), (jnp.asarray(numbers[8]),))
    gradients = drawn(5, axis, beyond=np.nan)
    wanted = slot_updates.adamw(trained, axis, gradients, None, update, VISITED)
    close = placed(gradients, places)
    again = slot_updates.adamw(trained, axis, close, places, update, VISITED)
    found = updates.adamw(trained, axis, close, places, update, VISITED)
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    for old, one, new in zip(*map(jax.tree.leaves, (trained, wanted, found)), strict=True):
        np.testing.assert_allclose(new, one, rtol=2e-6, atol=3e-7)
        assert same_elsewhere(new, old)


@pytest.mark.parametrize("places", PLACED.values(), ids=PLACED)
def test_sums_of_squares_are_the_reference_s_whatever_lies_in_other_slots(places):
    halves = [Half(drawn(axis, axis, beyond=np.nan), axis) for axis in SHAPES]
    wanted = slot_updates.squares(halves, None, VISITED)
    close = [half._replace(stack=placed(half.stack, places)) for half in halves]
    found = updates.squares(close, places, VISITED)
    np.testing.assert_allclose(found[::2], wanted[::2], rtol=1e-6)
    np.testing.assert_array_equal(slot_updates.squares(close, places, VISITED)[::2], wanted[::2])
    alone = updates.squares(close, places, VISITED._replace(which=jnp.array([False, False, True, False])))
    assert alone[2] == found[2]


@pytest.mark.parametrize("places", PLACED.values(), ids=PLACED)
@pytest.mark.parametrize("axis", SHAPES)
def test_gathered_gradients_begin_anew_where_they_are_told_to(axis, places):
    sums, new, begin = drawn(0, axis, beyond=np.nan), drawn(1, axis), jnp.array([True, True, False, False])
    wanted = slot_updates.gathered(Half(sums, axis), new, None, begin, VISITED)
    close, which = placed(new, places), np.asarray(VISITED.which)
    found = updates.gathered(Half(sums, axis), close, places, begin, VISITED)
    again = slot_updates.gathered(Half(sums, axis), close, places, begin, VISITED)
    np.testing.assert_array_equal(found[:, which], wanted[:, which])
    np.testing.assert_array_equal(again[:, which], wanted[:, which])
    assert same_elsewhere(found, sums)


def test_nobody_takes_part_and_nothing_changes():
    nobody = VISITED._replace(which=jnp.zeros(SLOTS, bool))
    trained = Trained(drawn(0, 1), drawn(1, 1), drawn(2, 1))
    update = Update(*[jnp.ones(SLOTS)] * 8)
    found = updates.adamw(trained, 1, drawn(3, 1), None, update, nobody)
    for old, new in zip(jax.tree.leaves(trained), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(new, old)
    np.testing.assert_array_equal(updates.squares([Half(drawn(3, 1), 1)], None, nobody), 0)


def test_a_slot_without_a_place_has_no_gradient():
    trained, one = Trained(drawn(0, 1), drawn(1, 1), jnp.square(drawn(2, 1))), jnp.ones(SLOTS)
    update, places = Update(*[one / 2] * 8), jnp.array([0, 1, 2, 3], jnp.int32)
    close = drawn(3, 1, beyond=np.nan)[:, :1]
    gradients = jnp.concatenate([close, *[jnp.zeros_like(close)] * 3], axis=1)
    wanted = slot_updates.adamw(trained, 1, gradients, None, update, VISITED)
    for found in (
        slot_updates.adamw(trained, 1, close, places, update, VISITED),
        updates.adamw(trained, 1, close, places, update, VISITED),
    ):
        for old, new in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(new, old, rtol=2e-6, atol=3e-7)
