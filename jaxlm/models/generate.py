"""Text out of a model: one pass over the prompts, then token by token on a cache."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxlm.models.head import softcapped
from jaxlm.models.transformer import Cache, Transformer


class _Sampling(NamedTuple):
    """Sampling of the next token; see `generate`."""

    temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    key: PRNGKeyArray


class Prompts(NamedTuple):
    """A batch of prompts.

    Attributes:
        tokens: int32, padded on the right with anything.
        lengths: int32, tokens of each; a row of 0 fills up the batch and makes nothing.
        ends: int32, tokens that end a row's text; -1 is none.
        most: int32, tokens that a row may make, or None where only the loop says it.
    """

    tokens: Int[Array, "batch length"]
    lengths: Int[Array, "batch"]
    ends: Int[Array, "batch ends"]
    most: Int[Array, "batch"] | None = None


class _Progress(NamedTuple):
    """The carry of the loop."""

    step: Int[Array, ""]
    token: Int[Array, "batch"]
    done: Bool[Array, "batch"]
    over: Bool[Array, ""]
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
    rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)

    def draw(logits: Array, step: Array) -> Array:
        if sampling is None:
            return likeliest(logits, step)
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(sampling.key, row), step))(rows)
        allowed = filter_logits(logits / sampling.temperature, top_k, sampling.top_p)
        return jax.vmap(jax.random.categorical)(keys, allowed).astype(jnp.int32)

    prompts = Prompts(tokens, lengths, jnp.broadcast_to(ends, (len(rows), *ends.shape)))
    return continued(
        lambda: nnx.merge(graph, state), prompts, max_new_tokens=max_new_tokens, routing=routing, draw=draw
    )


def likeliest(logits: Float[Array, "batch vocab"], step: Int[Array, ""]) -> Int[Array, "batch"]:
    """Returns each row's likeliest token, the first of equals."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def continued(
    build: Callable[[], Transformer],
    prompts: Prompts,
    *,
    max_new_tokens: int,
    routing: Any = None,
    draw: Callable[[Array, Array], Array] = likeliest,
    none_goes_on: Callable[[Bool[Array, "batch"]], Bool[Array, ""]] = jnp.all,
) -> Int[Array, "batch new"]:
    """Continues each prompt until its end or so many tokens; traced.

    Args:
        build: Makes the model, which is asked for anew inside the loop.
        prompts: What to continue.
        max_new_tokens: Tokens to make for each, at most.
        routing: Handed to every projection; a pytree of arrays, or None.
        draw: (logits float32 [batch, vocab], step) -> the next token of each row, int32 [batch].
        none_goes_on: Says of which rows have ended whether all have: on a mesh, those of all devices.

    Returns:
        int32 tokens after each prompt. Behind a row's first end token only the first of its end tokens follows.
    """
    tokens, lengths, ends, most = prompts
    batch, length = tokens.shape
    rows = jnp.arange(batch, dtype=jnp.int32)
    filler = jnp.maximum(ends[:, 0], 0) if ends.shape[1] else jnp.zeros(batch, jnp.int32)
    last = jnp.maximum(lengths, 1) - 1

    def choose(hidden: Array, step: Array) -> Array:
        head_kernel = head.astype(hidden.dtype)
        logits = jnp.einsum("bd,vd->bv", hidden, head_kernel, preferred_element_type=jnp.float32)
        return draw(softcapped(logits, model.config.logit_softcap), step)

    def ended(token: Array, made: Array) -> Array:
        at_end = jnp.any(token[:, None] == ends, axis=-1)
        return at_end if most is None else at_end | (made >= most)

    def going(carry: _Progress) -> Array:
        return (carry.step < max_new_tokens) & ~carry.over

    def advance(carry: _Progress) -> _Progress:
        positions = (last + carry.step)[:, None]
        hidden, cache = build().extend(carry.token[:, None], positions, carry.cache, routing)
        newest = hidden[:, 0]
        if grows:
            # Keys that were turned as a short text's do not fit queries of a long one: its row is computed anew.
            at = positions[:, 0]
            grown = ~carry.done & (at == model.config.rope.original_max_position)
            anew = partial(as_long, carry.tokens, at, grown)
            newest, cache = jax.lax.cond(none_goes_on(~grown), lambda *same: same, anew, newest, cache)
        token = jnp.where(carry.done, filler, choose(newest, carry.step))
        written = jax.lax.dynamic_update_index_in_dim(carry.tokens, token, carry.step, axis=1)
        done = carry.done | ended(token, carry.step + 1)
        return _Progress(carry.step + 1, token, done, none_goes_on(done), written, cache)

    def as_long(new: Array, at: Array, grown: Array, newest: Array, cache: Cache) -> tuple[Array, Cache]:
        """Returns the newest hidden states and the cache with those of `grown` rows computed anew, up to `at`."""
        most = length + max_new_tokens
        places = jnp.broadcast_to(jnp.arange(most, dtype=jnp.int32)[None, :], (batch, most))
        made = jnp.take_along_axis(new, jnp.clip(places - lengths[:, None], 0, max_new_tokens - 1), axis=1)
        texts = jnp.where(places < lengths[:, None], jnp.pad(tokens, ((0, 0), (0, max_new_tokens))), made)
        hidden, anew = build().extend(texts, places, jax.tree.map(jnp.zeros_like, cache), routing, at + 1)
        newest = jnp.where(grown[:, None], hidden[rows, at], newest)
        return newest, jax.tree.map(
            lambda one, old: jnp.where(grown.reshape(-1, *(1,) * (old.ndim - 2)), one, old), anew, cache
        )

    model = build()
    grows = model.config.rope.grows(length + max_new_tokens)
    head = model.head_kernel()
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None, :], tokens.shape)
    cache = model.empty_cache(batch, length + max_new_tokens)
    hidden, cache = model.extend(tokens, positions, cache, routing, lengths)
    empty = lengths == 0
    token = jnp.where(empty, filler, choose(hidden[rows, last], jnp.int32(0)))
    made = jnp.broadcast_to(filler[:, None], (batch, max_new_tokens)).at[:, 0].set(token)
    done = empty | ended(token, jnp.int32(1))
    first = _Progress(jnp.int32(1), token, done, none_goes_on(done), made, cache)
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
