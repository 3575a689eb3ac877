"""Numbers of four bits, two of them in a byte: of two inputs that follow each other the first has the upper half."""

import jax.numpy as jnp
from jaxtyping import Array, UInt8


def packed(numbers: UInt8[Array, "*layer in out"]) -> UInt8[Array, "*layer half out"]:
    """Returns the bytes of numbers below 16; their inputs are even in number."""
    return (numbers[..., ::2, :] << 4) | numbers[..., 1::2, :]


def unpacked(held: UInt8[Array, "*layer half out"]) -> UInt8[Array, "*layer in out"]:
    """Returns the numbers in bytes."""
    *layer, half, outputs = held.shape
    return jnp.stack((held >> 4, held & 15), axis=-2).reshape(*layer, 2 * half, outputs)
