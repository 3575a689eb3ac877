"""Rotary positions: the frequencies of each published scaling, and the rotation itself, in float32."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

SCALINGS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")


@dataclass(frozen=True)
class RopeConfig:
    """The growth of a head's angles with the position.

    Attributes:
        theta: Base of the geometric series of wavelengths.
        scaling: ``default``; ``linear`` (all frequencies divided by `factor`); ``llama3`` and ``yarn`` (those of long
            wavelengths alone); ``dynamic`` (a higher `theta`, the longer the text is beyond `original_max_position`);
            ``proportional`` (of a whole head's frequencies `partial` are kept, the highest, and the others 0);
            ``longrope`` (each divided by a number of its own, of two lists, one of them for texts of more than
            `original_max_position` tokens).
        factor: By which the context was stretched.
        low_freq_factor: ``llama3``: wavelengths above `original_max_position` / this are divided by `factor`.
        high_freq_factor: ``llama3``: wavelengths below `original_max_position` / this are kept.
        original_max_position: Context length before stretching, in tokens.
        attention_factor: Multiplies cosine and sine, and so keys and queries.
        beta_fast: ``yarn``: frequencies of more turns than this within `original_max_position` are kept.
        beta_slow: ``yarn``: those of fewer turns than this are divided by `factor`.
        truncate: ``yarn``: whether the pairs of dimensions between which the two blend are whole numbers.
        short_factors: ``longrope``: divisors for texts of at most `original_max_position` tokens.
        long_factors: ``longrope``: divisors for longer texts.
        partial: Share of a head's dimensions, the first ones, that rotate.
    """

    theta: float = 10_000.0
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    partial: float = 1.0

    def rotated(self, head_dim: int) -> int:
        """Returns how many dimensions of a head rotate, those that turn by 0 among them."""
        return head_dim if self.scaling == "proportional" else int(head_dim * self.partial)

    @property
    def by_length(self) -> bool:
        """Whether frequencies depend on the length of a text."""
        return self.scaling in ("dynamic", "longrope")

    def grows(self, tokens: int) -> bool:
        """Whether a text that grows up to so many tokens changes the frequencies of all that it holds."""
        return self.scaling == "longrope" and tokens > self.original_max_position


def inverse_frequencies(rope: RopeConfig, head_dim: int, *, long: bool = False) -> Float[np.ndarray, "half"]:
    """Radians per token of each pair of head dimensions that rotates, float32.

    Source: RoFormer (Su et al. 2021); `llama3` as in the Llama 3.1 release; `yarn` and `longrope` as in transformers.

    Args:
        rope: The rotation; of ``dynamic``, that of texts of at most its original length.
        head_dim: Width of a head.
        long: Whether for texts of more than its original length, where there are two lists.
    """
    powers = rope.theta ** _exponents(rope, head_dim)
    frequencies = 1.0 / powers
    if rope.scaling == "linear":
        frequencies = frequencies / rope.factor
    elif rope.scaling == "proportional":
        kept = np.arange(frequencies.size) < int(rope.partial * head_dim // 2)
        frequencies = frequencies * kept.astype(np.float32) / np.float32(rope.factor)
    elif rope.scaling == "longrope":
        divisors = np.asarray(rope.long_factors if long else rope.short_factors, np.float32)
        frequencies = 1.0 / (divisors * powers)
    elif rope.scaling == "yarn":
        share = 1.0 - _ramp(rope, rope.rotated(head_dim))
        frequencies = 1.0 / (np.float32(rope.factor) * powers) * (1.0 - share) + frequencies * share
    elif rope.scaling == "llama3":
        wavelengths = 2 * math.pi / frequencies
        turns = rope.original_max_position / wavelengths
        blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)
        frequencies = blend * frequencies + (1.0 - blend) * frequencies / rope.factor
    return frequencies.astype(np.float32)


def _exponents(rope: RopeConfig, head_dim: int) -> Float[np.ndarray, "half"]:
    rotated = rope.rotated(head_dim)
    return np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)


def _ramp(rope: RopeConfig, rotated: int) -> Float[np.ndarray, "half"]:
    """Returns how much of each frequency is divided, from 0 for the shortest wavelengths to 1 for the longest."""

    def pair(turns: float) -> float:
        """Returns the pair of dimensions that turns so often within the original context."""
        return rotated * math.log(rope.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotated - 1)
    span = last - first or 0.001
    return np.clip((np.arange(rotated // 2, dtype=np.float32) - np.float32(first)) / np.float32(span), 0.0, 1.0)


def rope_angles(
    rope: RopeConfig,
    head_dim: int,
    positions: Int[Array, "batch length"],
    lengths: Int[Array, "batch #length"] | None = None,
) -> tuple[Float[Array, "batch length half"], Float[Array, "batch length half"]]:
    """Cosine and sine of every position's angles, float32.

    Args:
        rope: The rotation.
        head_dim: Width of a head.
        positions: Of the tokens in their texts.
        lengths: int32, tokens of the text that each is of; None is at most the original context.
    """
    frequencies = jnp.asarray(inverse_frequencies(rope, head_dim))[None, None, :]
    if lengths is not None and rope.scaling == "longrope":
        long = jnp.asarray(inverse_frequencies(rope, head_dim, long=True))[None, None, :]
        frequencies = jnp.where(lengths[:, :, None] > rope.original_max_position, long, frequencies)
    elif lengths is not None and rope.scaling == "dynamic":
        stretch = jnp.maximum(lengths, rope.original_max_position).astype(jnp.float32) / rope.original_max_position
        rotated = rope.rotated(head_dim)
        base = rope.theta * (rope.factor * stretch - (rope.factor - 1.0)) ** (rotated / max(rotated - 2, 1))
        frequencies = 1.0 / base[:, :, None] ** jnp.asarray(_exponents(rope, head_dim))[None, None, :]
    angles = positions.astype(jnp.float32)[:, :, None] * frequencies
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def rotate(
    x: Float[Array, "batch length heads head_dim"],
    cos: Float[Array, "batch length half"],
    sin: Float[Array, "batch length half"],
    *,
    interleaved: bool = False,
) -> Float[Array, "batch length heads head_dim"]:
    """Turns the pair (x_j, x_{j + half}) by its angle; float32 inside, the dtype of `x` outside.

    Args:
        x: Queries or keys; dimensions behind the ``2 * half`` first ones stay as they are.
        cos: Of the angles.
        sin: Of the angles.
        interleaved: The pairs are (x_{2j}, x_{2j + 1}).
    """
    wide, rest = jnp.split(x.astype(jnp.float32), (2 * cos.shape[-1],), axis=-1)
    first, second = (wide[..., ::2], wide[..., 1::2]) if interleaved else jnp.split(wide, 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    joined = jnp.stack(turned, axis=-1).reshape(wide.shape) if interleaved else jnp.concatenate(turned, axis=-1)
    return jnp.concatenate((joined, rest), axis=-1).astype(x.dtype)
