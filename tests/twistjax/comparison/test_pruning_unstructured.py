"""Zeros in one shot: the published rules, transcribed, and what they promise."""

import jax.numpy as jnp
import numpy as np
import pytest
from families import DENSE
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.families.names import projections
from jaxlm.families.registry import random_config
from jaxlm.models.functional import weights_by_path
from jaxlm.models.transformer import Transformer
from twistjax.comparison.pruning.unstructured import Sparsity, magnitude, prune_unstructured, sparsegpt, wanda

pytestmark = pytest.mark.slow

HALF, TWO_OF_FOUR = Sparsity(0.5), Sparsity(0.5, (2, 4))
patterns = pytest.mark.parametrize("sparsity", [HALF, TWO_OF_FOUR], ids=["half", "2:4"])
few = settings(max_examples=12, deadline=None)


def problem(seed, out=24, width=40, count=200, dead=()):
    """A matrix, and correlated inputs that it is applied to."""
    draw = np.random.default_rng(seed)
    mix = draw.normal(size=(width, width)) * draw.exponential(size=width)
    x = (draw.normal(size=(count, width)) @ mix).astype(np.float32)
    x[:, list(dead)] = 0.0
    return draw.normal(size=(out, width)).astype(np.float32), x


def second(x):
    return jnp.asarray(x.T @ x / len(x), jnp.float32)


def published_wanda(w, x, sparsity):
    score = np.abs(w) * np.linalg.norm(x, axis=0)[None, :]
    mask = np.zeros_like(w, bool)
    if sparsity.pattern is None:
        order = np.argsort(score, axis=1, kind="stable")[:, : int(w.shape[1] * sparsity.share)]
        np.put_along_axis(mask, order, True, axis=1)
    else:
        n, m = sparsity.pattern
        for first in range(0, w.shape[1], m):
            order = np.argsort(score[:, first : first + m], axis=1, kind="stable")[:, :n] + first
            np.put_along_axis(mask, order, True, axis=1)
    return mask


def published_sparsegpt(w, x, sparsity, block=128):
    """Algorithm 1 of the paper in float64, column by column."""
    w, h = w.astype(np.float64).copy(), 2.0 * (x.astype(np.float64).T @ x) / len(x)
    dead = np.diag(h) == 0
    h[dead, dead] = 1.0
    w[:, dead] = 0.0
    h += 0.01 * np.mean(np.diag(h)) * np.eye(len(h)) if not dead.any() else 0.0
    factor = np.linalg.cholesky(np.linalg.inv(h)).T
    mask = np.zeros_like(w, bool)
    for first in range(0, w.shape[1], block):
        last = min(first + block, w.shape[1])
        errors = np.zeros((w.shape[0], last - first))
        if sparsity.pattern is None:
            score = w[:, first:last] ** 2 / np.diag(factor)[first:last] ** 2
            threshold = np.sort(score.ravel())[int(score.size * sparsity.share)]
            mask[:, first:last] = score <= threshold
        for j in range(first, last):
            if sparsity.pattern is not None and (j - first) % sparsity.pattern[1] == 0:
                n, m = sparsity.pattern
                score = w[:, j : j + m] ** 2 / np.diag(factor)[j : j + m] ** 2
                np.put_along_axis(mask, np.argsort(score, axis=1, kind="stable")[:, :n] + j, True, axis=1)
            errors[:, j - first] = np.where(mask[:, j], w[:, j], 0.0) / factor[j, j]
            w[:, j + 1 : last] -= errors[:, j - first, None] * factor[j, j + 1 : last]
            w[mask[:, j], j] = 0.0
        w[:, last:] -= errors @ factor[first:last, last:]
    return w


@few
@given(seed=st.integers(0, 2**31), sparsity=st.sampled_from([HALF, TWO_OF_FOUR, Sparsity(0.3)]))
def test_wanda_zeroes_what_the_published_rule_zeroes(seed, sparsity):
    w, x = problem(seed)
    ours = np.asarray(wanda(jnp.asarray(w), second(x), sparsity))
    mask = published_wanda(w, x, sparsity)
    np.testing.assert_array_equal(ours, np.where(mask, 0, w))


@few
@given(seed=st.integers(0, 2**31), sparsity=st.sampled_from([HALF, TWO_OF_FOUR]), width=st.sampled_from([40, 128, 200]))
def test_sparsegpt_is_the_published_algorithm(seed, sparsity, width):
    w, x = problem(seed, width=width, count=4 * width)
    ours, theirs = np.asarray(sparsegpt(jnp.asarray(w), second(x), sparsity)), published_sparsegpt(w, x, sparsity)
    # A score within rounding of the threshold may fall on either side, and then changes what follows in its row.
    same = ((ours == 0) == (theirs == 0)).all(axis=1)
    assert same.mean() > 0.8
    np.testing.assert_allclose(ours[same], theirs[same], atol=2e-2 * np.abs(theirs).max())


def test_features_that_are_always_zero_lose_their_weights_and_disturb_nothing():
    w, x = problem(3, dead=(0, 17))
    ours = np.asarray(sparsegpt(jnp.asarray(w), second(x), HALF))
    assert np.isfinite(ours).all() and not ours[:, [0, 17]].any()


def test_sparsegpt_loses_less_of_the_output_than_wanda_and_wanda_less_than_magnitude():
    losses = {"magnitude": 0.0, "wanda": 0.0, "sparsegpt": 0.0}
    for seed in range(5):
        w, x = problem(seed, out=64, width=96, count=500)
        found = {
            "magnitude": magnitude(jnp.asarray(w), HALF),
            "wanda": wanda(jnp.asarray(w), second(x), HALF),
            "sparsegpt": sparsegpt(jnp.asarray(w), second(x), HALF),
        }
        for name, pruned in found.items():
            losses[name] += float(np.square(x @ (w - np.asarray(pruned)).T).mean())
    assert losses["sparsegpt"] < losses["wanda"] < losses["magnitude"]


@pytest.mark.parametrize(
    ("family", "method"),
    [*((family, "magnitude") for family in DENSE), ("gpt2", "wanda"), ("llama", "sparsegpt"), ("gpt2", "sparsegpt")],
)
@patterns
def test_every_projection_and_nothing_else_becomes_as_sparse_as_asked(family, method, sparsity):
    config = random_config(family)
    model = Transformer(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    weights = weights_by_path(model, jnp.float32)
    rows = np.random.default_rng(0).integers(0, 256, (4, 16)).astype(np.int32)
    pruned = prune_unstructured(config, weights, rows, method, sparsity)
    kernels = {f"{one.stack}.{one.inside}.kernel" for one in projections(config).values()}
    for path, value in weights.items():
        after = np.asarray(pruned[path])
        if path not in kernels:
            np.testing.assert_array_equal(after, value)
            continue
        for layer in after:
            zeros = layer.T == 0
            if sparsity.pattern is not None:
                assert (zeros.reshape(-1, 4).sum(axis=1) == 2).all()
            elif method == "wanda":
                assert (zeros.sum(axis=1) == zeros.shape[1] // 2).all()
            else:  # SparseGPT's threshold itself goes too, in every block of 128 columns
                assert 0 <= zeros.sum() - zeros.size // 2 <= (method == "sparsegpt") * -(-zeros.shape[1] // 128)
