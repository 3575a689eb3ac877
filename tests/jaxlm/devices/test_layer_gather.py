"""Layers of gathered weights compute what a plain scan does, and keep no weights for the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.devices import layer_gather
from jaxlm.devices.layer_gather import GatheredPeriod, run_gathered
from jaxlm.devices.layer_loop import turns
from jaxlm.families.schedule import LayerKind, Period, PeriodLayer

LAYERS, WIDTH, INNER, ROWS = 4, 8, 16, 3


def drawn(number, *shape):
    return jax.random.normal(jax.random.key(number), (LAYERS, *shape), jnp.float32)


SHARDS = {"in": drawn(0, WIDTH, INNER), "out": drawn(1, INNER, WIDTH)}
TRAINED = {"a": drawn(2, WIDTH, 2), "b": drawn(3, 2, INNER)}
FIXED = jnp.asarray([True, False, True, True])
X = jax.random.normal(jax.random.key(4), (ROWS, WIDTH), jnp.float32)
SCALE = jnp.float32(0.5)


def layer(x, weights, trained, fixed, scale):
    inner = jax.nn.silu(x @ weights["in"] + (x @ trained["a"]) @ trained["b"])
    return x + jnp.where(fixed, scale, 2 * scale) * (inner @ weights["out"])


def plain(x, trained):
    def body(x, one):
        return layer(x, *one, SCALE), None

    return jnp.sum(jax.lax.scan(body, x, (SHARDS, trained, FIXED))[0] ** 2)


def stacked(layers, repeats):
    """A period of stack 0, of which so many layers repeat."""
    return Period(tuple(PeriodLayer(0, place, LayerKind()) for place in range(layers)), repeats)


PERIODS = {"scanned": stacked(1, 4), "in turns of two": stacked(2, 2), "in place": stacked(4, 1)}
periods = pytest.mark.parametrize("period", PERIODS.values(), ids=PERIODS.keys())


def spread(run, period):
    def total(x, trained):
        runs = (run,) * len(period.members)
        layers = GatheredPeriod(period, runs, lambda shards: jax.tree.map(lambda leaf: leaf * 1, shards))
        parts = [turns([tree], period) for tree in (trained, FIXED)]
        return jnp.sum(run_gathered(layers, x, (SHARDS,), *parts, SCALE) ** 2)

    return total


@periods
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_losses_and_gradients_are_those_of_a_plain_scan_and_weights_are_not_kept(period, remat, monkeypatch):
    policy = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}.get(remat)
    run = layer if remat == "none" else jax.checkpoint(layer, policy=policy, prevent_cse=period.repeats == 1)
    kept = []
    save = layer_gather._Saved.of.__func__

    def of(cls, pull, known):
        saved = save(cls, pull, known)
        kept.extend(leaf.shape for leaf in saved.leaves)
        return saved

    monkeypatch.setattr(layer_gather._Saved, "of", classmethod(of))
    got = jax.jit(jax.value_and_grad(spread(run, period), argnums=(0, 1)))(X, TRAINED)
    wanted = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(X, TRAINED)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert kept
    assert not set(kept) & {(WIDTH, INNER), (INNER, WIDTH), (WIDTH, 2), (2, INNER)}
    assert (ROWS, INNER) not in kept or remat != "full"


@periods
def test_without_a_gradient_the_layers_just_run(period):
    np.testing.assert_allclose(jax.jit(spread(layer, period))(X, TRAINED), plain(X, TRAINED), rtol=1e-6)
