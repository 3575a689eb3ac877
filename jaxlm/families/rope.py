"""Rotary positions: the frequencies of each published scaling, and the rotation itself, in float32."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

SCALINGS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class RopeConfig:
    """The growth of a head's angles with the position.

    Attributes:
        theta: Base of the geometric series of wavelengths.
        scaling: ``default``, ``linear`` (all frequencies divided by `factor`) or ``llama3`` (long wavelengths alone).
        factor: By which the context was stretched.
        low_freq_factor: ``llama3``: wavelengths above `original_max_position` / this are divided by `factor`.
        high_freq_factor: ``llama3``: wavelengths below `original_max_position` / this are kept.
        original_max_position: ``llama3``: context length before stretching, in tokens.
    """

    theta: float = 10_000.0
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Float[np.ndarray, "half"]:
    """Radians per token of each pair of head dimensions, float32.

    Source: RoFormer (Su et al. 2021); `llama3` as in the Llama 3.1 release.
    """
    frequencies = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    if rope.scaling == "linear":
        frequencies = frequencies / rope.factor
    elif rope.scaling == "llama3":
        wavelengths = 2 * math.pi / frequencies
        turns = rope.original_max_position / wavelengths
        blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)
        frequencies = blend * frequencies + (1.0 - blend) * frequencies / rope.factor
    return frequencies.astype(np.float32)


def rope_angles(
    rope: RopeConfig, head_dim: int, positions: Int[Array, "batch length"]
) -> tuple[Float[Array, "batch length half"], Float[Array, "batch length half"]]:
    """Cosine and sine of every position's angles, float32."""
    frequencies = jnp.asarray(inverse_frequencies(rope, head_dim))
    angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "batch length heads head_dim"],
    cos: Float[Array, "batch length half"],
    sin: Float[Array, "batch length half"],
    *,
    interleaved: bool = False,
) -> Float[Array, "batch length heads head_dim"]:
    """Turns the pair (x_j, x_{j + head_dim/2}) by its angle; float32 inside, the dtype of `x` outside.

    Args:
        x: Queries or keys.
        cos: Of the angles.
        sin: Of the angles.
        interleaved: The pairs are (x_{2j}, x_{2j + 1}).
    """
    wide = x.astype(jnp.float32)
    first, second = (wide[..., ::2], wide[..., 1::2]) if interleaved else jnp.split(wide, 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    joined = jnp.stack(turned, axis=-1).reshape(x.shape) if interleaved else jnp.concatenate(turned, axis=-1)
    return joined.astype(x.dtype)
