"""Counter-based dropout.

A mask is a function of (token key, feature), so a backward pass or a kernel can make it again bit for bit.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

GOLDEN = 0x9E3779B9


class Dropout(NamedTuple):
    """Dropout on the adapter's input, drawn per token.

    Attributes:
        rate: float32 [slots], the share of features each slot drops, 0 <= rate < 1.
        token_keys: uint32 [tokens], one key a token; two tokens with equal keys get equal masks.
    """

    rate: Float[Array, " slots"]
    token_keys: UInt32[Array, " tokens"]


def mix[A: (Array, np.ndarray)](bits: A) -> A:
    """Scrambles 32 bits (the "lowbias32" finaliser of C. Wellons' hash prospector); a bijection on uint32."""
    bits = bits ^ (bits >> np.uint32(16))
    bits = bits * np.uint32(0x7FEB352D)
    bits = bits ^ (bits >> np.uint32(15))
    bits = bits * np.uint32(0x846CA68B)
    return bits ^ (bits >> np.uint32(16))


def token_seeds(row_key: int, tokens: int) -> UInt32[np.ndarray, " tokens"]:
    """Returns a seed of each token of a row, on the host; it depends on neither the row's length nor its place."""
    return np.uint32(row_key) ^ mix(np.arange(tokens, dtype=np.uint32) * np.uint32(GOLDEN))


def token_keys(seeds: UInt32[Array, "*tokens"], salt: UInt32[Array, ""]) -> UInt32[Array, "*tokens"]:
    """Returns one key a token; another salt makes masks that have nothing in common."""
    return mix(seeds ^ salt)


def from_feature(keys: UInt32[Array, "*shape"], first: Int[Array, ""]) -> UInt32[Array, "*shape"]:
    """Returns the token keys of a device that holds the features from `first` on, and counts them from 0."""
    return keys + first.astype(jnp.uint32) * jnp.uint32(GOLDEN)


def thresholds(dropout: Dropout) -> tuple[Array, Array]:
    """Per slot: bits below which a feature is dropped (uint32), and what the kept ones are multiplied by (float32)."""
    return _threshold(dropout.rate), 1 / (1 - dropout.rate)


def _threshold(rate: Float[Array, "*rates"]) -> UInt32[Array, "*rates"]:
    return jnp.round(rate * jnp.float32(2**24)).astype(jnp.uint32)


def keep_mask(
    keys: UInt32[Array, " tokens"], rate: Float[Array, " tokens"], features: int
) -> Bool[Array, "tokens features"]:
    """Returns which features each token keeps.

    Args:
        keys: uint32 [tokens].
        rate: float32 [tokens], the share to drop; resolved to 24 bits.
        features: Number of features.
    """
    counter = jnp.arange(features, dtype=jnp.uint32) * jnp.uint32(GOLDEN)
    bits = mix(keys[:, None] + counter[None, :])
    return (bits >> jnp.uint32(8)) >= _threshold(rate)[:, None]


def drop(
    x: Float[Array, "tokens features"], dropout: Dropout, tile_slots: Int[Array, " tiles"]
) -> Float[Array, "tokens features"]:
    """Returns x with dropped features zeroed and the others scaled by 1 / (1 - rate).

    A slot with rate 0 gets x back bit for bit.
    """
    tokens, features = x.shape
    rate = jnp.repeat(dropout.rate[tile_slots], tokens // tile_slots.shape[0], total_repeat_length=tokens)
    kept = x * (1 / (1 - rate))[:, None].astype(x.dtype)
    return jnp.where(keep_mask(dropout.token_keys, rate, features), kept, jnp.zeros_like(x))
