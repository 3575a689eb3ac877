"""The loss at the output head, a chunk of targets at a time: ``[targets, vocab]`` never exists as a whole."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.families.config import ModelConfig

LOGITS_BYTES = 64 * 2**20
"""Room for the float32 logits of one chunk of targets on a CPU."""
LOGITS_SHARE = 64
"""An accelerator gives them this part of its memory at most: where rows of a chunk are few, reading the head takes
longest."""
FILLS, LEAST_CHUNK = 2**22, 1024
"""Numbers of a product that keep all of an accelerator busy, 128 tiles of 128 x 256, and targets that repay reading the
head. A chunk's gradient in its hidden states has no more: fewer of larger chunks are padding alone, which is left
out."""


def target_nll(
    hidden: Float[Array, "targets width"],
    head: Float[Array, "vocab width"],
    targets: Int[Array, "targets"],
    *,
    chunk: int,
    softcap: float | None = None,
    live: Int[Array, ""] | None = None,
) -> Float[Array, "targets"]:
    """Negative log likelihood of each target, float32, differentiable in `hidden`; the head is frozen.

    The gradient of a chunk is made while its logits exist, so a training step costs two products with the head rather
    than three, and keeps ``[targets, width]`` instead of logits.

    Args:
        hidden: Hidden states that predict the targets; the products run in this dtype and accumulate in float32.
        head: The output head.
        targets: int32 token ids.
        chunk: Targets whose logits exist at a time; divides the number of targets unless it exceeds it.
        softcap: As `ModelConfig.logit_softcap`.
        live: int32, the targets before those that are padding, of which whole chunks are left out: losses and gradients
            of these are 0. None where none are.

    Raises:
        ValueError: The targets do not come in whole chunks.
    """
    chunk = whole_chunks(hidden, chunk)
    chunks = None if live is None or chunk == hidden.shape[0] else -(-live // jnp.int32(chunk))
    return _nll(hidden, head.astype(hidden.dtype), targets, chunks, chunk, softcap)


def total_nll(
    hidden: Float[Array, "targets width"],
    head: Float[Array, "vocab width"],
    targets: Int[Array, "targets"],
    weights: Float[Array, "targets"],
    *,
    chunk: int,
    softcap: float | None = None,
) -> Float[Array, ""]:
    """Weighted sum of negative log likelihoods, float32, differentiable in `hidden` and in the head, which trains.

    Both gradients of a chunk are made while its logits exist: three products with the head, and no logits kept.

    Args:
        hidden: As in `target_nll`.
        head: The output head.
        targets: int32 token ids.
        weights: float32; what each target counts.
        chunk: As in `target_nll`.
        softcap: As in `target_nll`.

    Raises:
        ValueError: The targets do not come in whole chunks.
    """
    return _total(hidden, head, targets, weights, whole_chunks(hidden, chunk), softcap)


def softcapped(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """Bends numbers towards a bound that they do not reach: ``cap * tanh(x / cap)``; no cap leaves them."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def whole_chunks(hidden: Array, chunk: int) -> int:
    """Returns the targets of a chunk, which are all of them where a chunk is larger.

    Raises:
        ValueError: They do not come in whole chunks.
    """
    count = hidden.shape[0]
    if chunk >= count:
        return count
    if chunk < 1 or count % chunk:
        raise ValueError(f"{count} targets do not come in whole chunks of {chunk}")
    return chunk


def chunked(x: Array, chunk: int) -> Array:
    """Returns an array whose first axis is cut into chunks."""
    return x.reshape(-1, chunk, *x.shape[1:])


def head_logits(
    hidden: Float[Array, "chunk width"], head: Float[Array, "vocab width"], softcap: float | None
) -> Float[Array, "chunk vocab"]:
    """Returns the logits of a chunk, float32."""
    products = jax.lax.dot_general(hidden, head, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return softcapped(products, softcap)


def _slopes(logits: Array, log_sum: Array, targets: Array, softcap: float | None) -> Array:
    """Gradient of each target's loss in the products behind its logits, ``[chunk, vocab]`` float32."""
    probability = jnp.exp(logits - log_sum[:, None])
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == targets[:, None]
    slopes = jnp.where(is_target, probability - 1.0, probability)
    return slopes if softcap is None else slopes * (1.0 - jnp.square(logits / softcap))


def nll_of_logits(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Negative log likelihood and log of the partition sum, both ``[chunk]`` float32."""
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    return log_sum - jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0], log_sum


def _each_chunk(one: Callable[[Any], Any], parts: tuple[Array, ...], chunks: Array | None) -> Any:
    """Returns the results of the first `chunks` chunks, and 0 for the others; None is all.

    The number of turns is read on the device, so that no other number compiles anything.
    """
    if chunks is None:
        return jax.lax.map(one, parts)
    found = jax.eval_shape(lambda parts: jax.lax.map(one, parts), parts)

    def turn(at: Array, done: Any) -> Any:
        part = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, at, keepdims=False), parts)
        return jax.tree.map(lambda to, x: jax.lax.dynamic_update_index_in_dim(to, x, at, 0), done, one(part))

    return jax.lax.fori_loop(jnp.int32(0), chunks, turn, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found))


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _nll(hidden: Array, head: Array, targets: Array, chunks: Array | None, chunk: int, softcap: float | None) -> Array:
    def one(c: tuple[Array, Array]) -> Array:
        return nll_of_logits(head_logits(c[0], head, softcap), c[1])[0]

    return _each_chunk(one, (chunked(hidden, chunk), chunked(targets, chunk)), chunks).reshape(-1)


def _nll_forward(
    hidden: Array, head: Array, targets: Array, chunks: Array | None, chunk: int, softcap: float | None
) -> tuple[Array, Array]:
    def one(c: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = head_logits(c[0], head, softcap)
        nll, log_sum = nll_of_logits(logits, c[1])
        d_logits = _slopes(logits, log_sum, c[1], softcap).astype(head.dtype)
        return nll, jnp.matmul(d_logits, head, preferred_element_type=jnp.float32).astype(hidden.dtype)

    nll, d_hidden = _each_chunk(one, (chunked(hidden, chunk), chunked(targets, chunk)), chunks)
    return nll.reshape(-1), d_hidden.reshape(hidden.shape)


def _nll_backward(chunk: int, softcap: float | None, d_hidden: Array, g: Array) -> tuple[Array, None, None, None]:
    return (g[:, None] * d_hidden.astype(jnp.float32)).astype(d_hidden.dtype), None, None, None


_nll.defvjp(_nll_forward, _nll_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _total(hidden: Array, head: Array, targets: Array, weights: Array, chunk: int, softcap: float | None) -> Array:
    return jnp.sum(_nll(hidden, head.astype(hidden.dtype), targets, None, chunk, softcap) * weights)


def _total_forward(
    hidden: Array, head: Array, targets: Array, weights: Array, chunk: int, softcap: float | None
) -> tuple[Array, tuple[Array, Array]]:
    table = head.astype(hidden.dtype)

    def one(d_head: Array, c: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        states, wanted, counts = c
        logits = head_logits(states, table, softcap)
        nll, log_sum = nll_of_logits(logits, wanted)
        d_logits = (_slopes(logits, log_sum, wanted, softcap) * counts[:, None]).astype(table.dtype)
        d_hidden = jnp.matmul(d_logits, table, preferred_element_type=jnp.float32).astype(hidden.dtype)
        d_head += jax.lax.dot_general(d_logits, states, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return d_head, (jnp.sum(nll * counts), d_hidden)

    # Made of the inputs, so that under shard_map it varies over the same axes as they do.
    zeros = jnp.zeros(head.shape, jnp.float32) + 0.0 * hidden[0, 0].astype(jnp.float32)
    parts = (chunked(hidden, chunk), chunked(targets, chunk), chunked(weights, chunk))
    d_head, (totals, d_hidden) = jax.lax.scan(one, zeros, parts)
    return jnp.sum(totals), (d_hidden.reshape(hidden.shape), d_head.astype(head.dtype))


def _total_backward(
    chunk: int, softcap: float | None, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array, None, None]:
    d_hidden, d_head = (part.astype(jnp.float32) * g for part in saved)
    return d_hidden.astype(saved[0].dtype), d_head.astype(saved[1].dtype), None, None


_total.defvjp(_total_forward, _total_backward)


def head_chunk_of(config: ModelConfig) -> int:
    """Returns the targets whose logits exist at once: a power of two, so that it divides their number."""
    fits = 1 << max(6, (logits_bytes() // (4 * config.vocab_size)).bit_length() - 1)
    return min(fits, max(LEAST_CHUNK, 1 << (-(-FILLS // config.hidden_size) - 1).bit_length()))


def logits_bytes() -> int:
    """Returns the room for the float32 logits of one chunk of targets on the default device."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return max(LOGITS_BYTES, int(stats.get("bytes_limit", 0)) // LOGITS_SHARE)
