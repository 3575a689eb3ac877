"""The loss at the output head against the likeliest tokens of a teacher, a chunk of targets at a time.

A teacher is known by the probabilities of its likeliest tokens; all others are one more outcome, the rest. The
divergence between teacher and student over these outcomes is at most that over the whole vocabulary, and zero where
they agree.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.models.head import chunked, head_logits, nll_of_logits, whole_chunks

LEAST_REST = 1e-6
"""Of a student's probability of the rest, whose logarithm is taken."""


class SoftTargets(NamedTuple):
    """What a teacher expects in place of each target.

    Attributes:
        tokens: int32 ids of the likeliest tokens.
        log_probabilities: Theirs, float32, over the whole vocabulary.
    """

    tokens: Int[Array, "*targets top"]
    log_probabilities: Float[Array, "*targets top"]


def likeliest(
    hidden: Float[Array, "targets width"],
    head: Float[Array, "vocab width"],
    *,
    top: int,
    chunk: int,
    softcap: float | None = None,
) -> SoftTargets:
    """Returns the likeliest tokens of a model at each place; arguments as of `jaxlm.models.head.total_nll`."""
    table = head.astype(hidden.dtype)

    def one(states: Array) -> tuple[Array, Array]:
        logits = head_logits(states, table, softcap)
        best, tokens = jax.lax.top_k(logits, top)
        return tokens.astype(jnp.int32), best - jax.nn.logsumexp(logits, axis=-1, keepdims=True)

    found = jax.lax.map(one, chunked(hidden, whole_chunks(hidden, chunk)))
    return SoftTargets(*(part.reshape(-1, top) for part in found))


def total_soft_nll(
    hidden: Float[Array, "targets width"],
    head: Float[Array, "vocab width"],
    targets: Int[Array, "targets"],
    soft: SoftTargets,
    weights: Float[Array, "targets"],
    *,
    share: float,
    chunk: int,
    softcap: float | None = None,
) -> Float[Array, ""]:
    """Weighted sum of divergences from a teacher and of negative log likelihoods, differentiable as `total_nll` is.

    Args:
        hidden: As of `jaxlm.models.head.total_nll`.
        head: The output head.
        targets: int32 token ids.
        soft: The teacher.
        weights: float32; what each target counts.
        share: Of the divergence; the rest is the likelihood's.
        chunk: Targets whose logits exist at a time.
        softcap: As `ModelConfig.logit_softcap`.

    Raises:
        ValueError: The targets do not come in whole chunks.
    """
    return _total(hidden, head, targets, soft, weights, share, whole_chunks(hidden, chunk), softcap)


def _loss(logits: Array, targets: Array, soft: SoftTargets, share: float) -> tuple[Array, Array]:
    """Returns each target's loss, and its slope in the logits."""
    nll, log_sum = nll_of_logits(logits, targets)
    probability = jnp.exp(logits - log_sum[:, None])
    own = jnp.take_along_axis(logits, soft.tokens, axis=-1) - log_sum[:, None]
    teacher, student = jnp.exp(soft.log_probabilities), jnp.exp(own)
    rest = jnp.clip(1.0 - jnp.sum(teacher, axis=-1), 0.0, 1.0)
    left = jnp.maximum(1.0 - jnp.sum(student, axis=-1), LEAST_REST)
    of_rest = jnp.where(rest > 0, rest * (jnp.log(jnp.where(rest > 0, rest, 1.0)) - jnp.log(left)), 0.0)
    divergence = jnp.sum(teacher * (soft.log_probabilities - own), axis=-1) + of_rest
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == targets[:, None]
    ratio = (rest / left)[:, None]
    slopes = probability * (1.0 - share * ratio) - (1.0 - share) * is_target.astype(jnp.float32)
    row = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    slopes = slopes.at[row, soft.tokens].add(share * (student * ratio - teacher))
    return share * divergence + (1.0 - share) * nll, slopes


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _total(
    hidden: Array,
    head: Array,
    targets: Array,
    soft: SoftTargets,
    weights: Array,
    share: float,
    chunk: int,
    softcap: float | None,
) -> Array:
    return _forward(hidden, head, targets, soft, weights, share, chunk, softcap)[0]


def _forward(
    hidden: Array,
    head: Array,
    targets: Array,
    soft: SoftTargets,
    weights: Array,
    share: float,
    chunk: int,
    softcap: float | None,
) -> tuple[Array, tuple[Array, Array]]:
    table = head.astype(hidden.dtype)

    def one(d_head: Array, c: tuple[Array, Array, SoftTargets, Array]) -> tuple[Array, tuple[Array, Array]]:
        states, wanted, taught, counts = c
        logits = head_logits(states, table, softcap)
        losses, slopes = _loss(logits, wanted, taught, share)
        if softcap is not None:
            slopes = slopes * (1.0 - jnp.square(logits / softcap))
        d_logits = (slopes * counts[:, None]).astype(table.dtype)
        d_hidden = jnp.matmul(d_logits, table, preferred_element_type=jnp.float32).astype(hidden.dtype)
        d_head += jax.lax.dot_general(d_logits, states, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return d_head, (jnp.sum(losses * counts), d_hidden)

    # Made of the inputs, so that under shard_map it varies over the same axes as they do.
    zeros = jnp.zeros(head.shape, jnp.float32) + 0.0 * hidden[0, 0].astype(jnp.float32)
    parts = jax.tree.map(lambda part: chunked(part, chunk), (hidden, targets, soft, weights))
    d_head, (totals, d_hidden) = jax.lax.scan(one, zeros, parts)
    return jnp.sum(totals), (d_hidden.reshape(hidden.shape), d_head.astype(head.dtype))


def _backward(
    share: float, chunk: int, softcap: float | None, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array, None, None, None]:
    d_hidden, d_head = (part.astype(jnp.float32) * g for part in saved)
    return d_hidden.astype(saved[0].dtype), d_head.astype(saved[1].dtype), None, None, None


_total.defvjp(_forward, _backward)
