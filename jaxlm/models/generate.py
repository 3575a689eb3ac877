"""Text out of a model: one pass over the prompts, then token by token on a key-value cache."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxlm.models.transformer import Cache, Transformer


class _Sampling(NamedTuple):
    """Sampling of the next token; see `generate`."""

    temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    key: PRNGKeyArray


class _Progress(NamedTuple):
    """The carry of the loop."""

    step: Int[Array, ""]
    token: Int[Array, "batch"]
    done: Bool[Array, "batch"]
    tokens: Int[Array, "batch new"]
    cache: Cache


def generate(
    model: Transformer,
    tokens: Int[ArrayLike, "batch length"],
    lengths: Int[ArrayLike, "batch"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    eos_ids: Sequence[int] = (),
    routing: Any = None,
) -> Int[Array, "batch new"]:
    """Continues each prompt. Compiled once for a shape of the prompts.

    Args:
        model: The model; where a projection was adapted, `routing` says how.
        tokens: int32 prompts, padded on the right with anything.
        lengths: int32, tokens of each prompt; a row of 0 fills up the batch and makes nothing.
        max_new_tokens: Tokens to make for each.
        temperature: 0 takes the likeliest token; else logits are divided by it before a draw.
        top_p: Draws among the likeliest tokens that together reach this probability.
        top_k: Draws among this many likeliest tokens; 0 is all.
        seed: Of the draws; a row's draws depend on it, the row's index and the step.
        eos_ids: Tokens that end a text.
        routing: Handed to every projection; a pytree of arrays with one entry a row, or None.

    Returns:
        int32 tokens after each prompt. Behind a row's first end token only ``eos_ids[0]`` follows.

    Raises:
        ValueError: A number out of range, or more tokens than the model has positions for.
    """
    tokens = jnp.asarray(tokens, jnp.int32)
    total = tokens.shape[1] + max_new_tokens
    if max_new_tokens < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"{max_new_tokens=}, {temperature=}, {top_k=}, {top_p=}; expected >= 1, >= 0, >= 0 and in (0, 1]"
        )
    if model.config.positions == "learned" and total > model.config.max_position:
        raise ValueError(f"prompt and new tokens are {total}, but the model has {model.config.max_position} positions")
    sampling = None
    if temperature > 0:
        sampling = _Sampling(
            jnp.asarray(temperature, jnp.float32), jnp.asarray(top_p, jnp.float32), jax.random.key(seed)
        )
    graph, state = nnx.split(model)
    ends = jnp.asarray(list(eos_ids), jnp.int32)
    lengths = jnp.asarray(lengths, jnp.int32)
    return _generate(state, tokens, lengths, ends, sampling, routing, graph, max_new_tokens, top_k)


@partial(jax.jit, static_argnums=(6, 7, 8))
def _generate(
    state: nnx.State,
    tokens: Array,
    lengths: Array,
    ends: Array,
    sampling: _Sampling | None,
    routing: Any,
    graph: nnx.GraphDef[Transformer],
    max_new_tokens: int,
    top_k: int,
) -> Array:
    batch, length = tokens.shape
    rows = jnp.arange(batch, dtype=jnp.int32)
    filler = ends[0] if ends.size else jnp.int32(0)

    def choose(model: Transformer, hidden: Array, step: Array) -> Array:
        logits = jnp.einsum(
            "bd,vd->bv", hidden, model.head_kernel().astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        if sampling is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(sampling.key, row), step))(rows)
        allowed = filter_logits(logits / sampling.temperature, top_k, sampling.top_p)
        return jax.vmap(jax.random.categorical)(keys, allowed).astype(jnp.int32)

    def ended(token: Array) -> Array:
        return jnp.any(token[:, None] == ends[None, :], axis=-1)

    def going(carry: _Progress) -> Array:
        return (carry.step < max_new_tokens) & ~jnp.all(carry.done)

    def advance(carry: _Progress) -> _Progress:
        model = nnx.merge(graph, state)
        positions = (jnp.maximum(lengths, 1) + carry.step - 1)[:, None]
        hidden, cache = model.extend(carry.token[:, None], positions, carry.cache, routing)
        token = jnp.where(carry.done, filler, choose(model, hidden[:, 0], carry.step))
        written = jax.lax.dynamic_update_index_in_dim(carry.tokens, token, carry.step, axis=1)
        return _Progress(carry.step + 1, token, carry.done | ended(token), written, cache)

    model = nnx.merge(graph, state)
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None, :], tokens.shape)
    cache = model.empty_cache(batch, length + max_new_tokens)
    hidden, cache = model.extend(tokens, positions, cache, routing)
    empty = lengths == 0
    token = jnp.where(empty, filler, choose(model, hidden[rows, jnp.maximum(lengths, 1) - 1], jnp.int32(0)))
    made = jnp.full((batch, max_new_tokens), filler, jnp.int32).at[:, 0].set(token)
    first = _Progress(jnp.int32(1), token, empty | ended(token), made, cache)
    return jax.lax.while_loop(going, advance, first).tokens


def filter_logits(
    logits: Float[Array, "batch vocab"], top_k: int, top_p: Float[Array, ""]
) -> Float[Array, "batch vocab"]:
    """Minus infinity for all but the `top_k` likeliest, and of those all but the fewest that reach `top_p` together."""
    if top_k:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    descending = jnp.sort(logits, axis=-1, descending=True)
    probability = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    kept = jnp.where(before < top_p, descending, jnp.inf)
    return jnp.where(logits < jnp.min(kept, axis=-1, keepdims=True), -jnp.inf, logits)
