"""Zeros among a dense model's weights, in one shot: magnitude, Wanda (2306.11695) and SparseGPT (2301.00774).

Shapes stay as they are. Published code holds weights as [out, in]; so do the functions here, kernels are turned.
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from jaxlm.families.config import ModelConfig
from jaxlm.families.names import projections
from twistjax.calibration import Walk, exact_products

Method = Literal["magnitude", "wanda", "sparsegpt"]
BLOCK, DAMPING = 128, 0.01
"""SparseGPT's columns of a block, and what of the mean diagonal it adds to the diagonal."""


class Sparsity(NamedTuple):
    """The share of weights that become zero.

    Attributes:
        share: Of all, where there is no pattern.
        pattern: (n, m): n of every m consecutive inputs become zero.
    """

    share: float
    pattern: tuple[int, int] | None = None


def prune_unstructured(
    config: ModelConfig,
    weights: Mapping[str, Array],
    rows: Int32[np.ndarray, "rows length"],
    method: Method,
    sparsity: Sparsity,
) -> dict[str, Array]:
    """Prunes the projections of every layer; each sees what the pruned layers before it make of the calibration text.

    Args:
        config: The model's.
        weights: Its weights by path; dtypes stay.
        rows: int32 calibration text, of no meaning to ``magnitude``.
        method: Which.
        sparsity: How much.
    """
    pruned: dict[str, list[Array]] = {}
    with exact_products():
        walk = Walk(config, weights, rows)
        for stack, place in walk.layers:
            layer = walk.layer(stack, place)
            statistics = {} if method == "magnitude" else walk.statistics(stack, place, layer)
            for key in projections(stack.config):
                path = f"{key}.kernel"
                w = layer[path].T
                if method == "magnitude":
                    w = magnitude(w, sparsity)
                elif method == "wanda":
                    w = wanda(w, statistics[key], sparsity)
                else:
                    w = sparsegpt(w, statistics[key], sparsity)
                layer[path] = w.T
                pruned.setdefault(f"{stack.name}.{path}", []).append(layer[path])
            if method != "magnitude":
                walk.advance(stack, place, layer)
    return {
        path: jnp.stack(pruned[path]).astype(value.dtype) if path in pruned else value
        for path, value in weights.items()
    }


@partial(jax.jit, static_argnums=1)
def magnitude(w: Float[Array, "out in"], sparsity: Sparsity) -> Float[Array, "out in"]:
    """Zeroes the smallest of a matrix, or of every m inputs."""
    score = jnp.abs(w)
    if sparsity.pattern is not None:
        return jnp.where(_lowest_of_each(score, sparsity.pattern), 0.0, w)
    return jnp.where(_lowest(score.reshape(1, -1), int(w.size * sparsity.share)).reshape(w.shape), 0.0, w)


@partial(jax.jit, static_argnums=2)
def wanda(w: Float[Array, "out in"], second: Float[Array, "in in"], sparsity: Sparsity) -> Float[Array, "out in"]:
    """Zeroes what is smallest by |w| · ‖x‖ among the weights of each output, or of every m inputs of it."""
    score = jnp.abs(w) * jnp.sqrt(jnp.diagonal(second))[None, :]
    if sparsity.pattern is not None:
        return jnp.where(_lowest_of_each(score, sparsity.pattern), 0.0, w)
    return jnp.where(_lowest(score, int(w.shape[1] * sparsity.share)), 0.0, w)


@partial(jax.jit, static_argnums=2)
def sparsegpt(w: Float[Array, "out in"], second: Float[Array, "in in"], sparsity: Sparsity) -> Float[Array, "out in"]:
    """Zeroes block by block what costs least to lose, and lets the weights behind make up for it."""
    width = w.shape[1]
    diagonal = jnp.diagonal(second)
    dead = diagonal == 0
    w = jnp.where(dead[None, :], 0.0, w)
    damped = jnp.where(dead, 1.0, diagonal)
    damped = damped + DAMPING * jnp.mean(damped)
    hessian = second - jnp.diag(diagonal) + jnp.diag(damped)
    inverse = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(hessian), jnp.eye(width, dtype=jnp.float32))
    factor = jnp.linalg.cholesky((inverse + inverse.T) / 2, symmetrize_input=False).T
    for first in range(0, width, BLOCK):
        last = min(first + BLOCK, width)
        block, errors = _prune_block(w[:, first:last], factor[first:last, first:last], sparsity)
        behind = w[:, last:] - errors @ factor[first:last, last:]
        w = jnp.concatenate([w[:, :first], block, behind], axis=1)
    return w


def _prune_block(
    w: Float[Array, "out block"], factor: Float[Array, "block block"], sparsity: Sparsity
) -> tuple[Float[Array, "out block"], Float[Array, "out block"]]:
    """Returns the pruned block, and the error of each weight over the factor's diagonal."""
    scale = jnp.square(jnp.diagonal(factor))
    columns = jnp.arange(w.shape[1], dtype=jnp.int32)
    if sparsity.pattern is None:
        score = jnp.square(w) / scale[None, :]
        threshold = jnp.sort(score.reshape(-1))[int(w.size * sparsity.share)]
        mask = score <= threshold
    else:
        mask = jnp.zeros(w.shape, bool)

    def column(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        w, errors, mask = carry
        if sparsity.pattern is not None:
            n, m = sparsity.pattern
            here = jax.lax.dynamic_slice_in_dim(w, i, m, axis=1)
            least = jnp.square(here) / jax.lax.dynamic_slice_in_dim(scale, i, m)[None, :]
            chosen = jax.lax.dynamic_update_slice_in_dim(mask, _lowest(least, n), i, axis=1)
            mask = jnp.where(i % m == 0, chosen, mask)
        now = jnp.take(w, i, axis=1)
        kept = jnp.where(jnp.take(mask, i, axis=1), 0.0, now)
        error = (now - kept) / factor[i, i]
        later = jnp.where(columns > i, factor[i], 0.0)
        w = w - error[:, None] * later[None, :]
        w = jnp.where(columns[None, :] == i, kept[:, None], w)
        return w, jnp.where(columns[None, :] == i, error[:, None], errors), mask

    w, errors, _ = jax.lax.fori_loop(jnp.int32(0), jnp.int32(w.shape[1]), column, (w, jnp.zeros_like(w), mask))
    return w, errors


def _lowest(score: Float[Array, "rows n"], count: int) -> Bool[Array, "rows n"]:
    """Whether a score is among the `count` lowest of its row; of equal ones the first."""
    order = jnp.argsort(score, axis=1, stable=True)
    rank = jnp.argsort(order, axis=1, stable=True)
    return rank < count


def _lowest_of_each(score: Float[Array, "out in"], pattern: tuple[int, int]) -> Bool[Array, "out in"]:
    n, m = pattern
    return _lowest(score.reshape(-1, m), n).reshape(score.shape)
