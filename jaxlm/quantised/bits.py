"""Numbers of a few bits, several of them in a byte: of inputs that follow each other the first has the upper bits."""

from functools import reduce
from operator import or_

import jax.numpy as jnp
from jaxtyping import Array, UInt8


def packed(numbers: UInt8[Array, "*layer in out"], bits: int = 4) -> UInt8[Array, "*layer bytes out"]:
    """Returns the bytes of numbers of 1, 2 or 4 bits, whose inputs fill whole bytes."""
    each = 8 // bits
    return reduce(or_, (numbers[..., place::each, :] << (8 - bits * (place + 1)) for place in range(each)))


def unpacked(held: UInt8[Array, "*layer bytes out"], bits: int = 4) -> UInt8[Array, "*layer in out"]:
    """Returns the numbers in bytes."""
    *layer, count, outputs = held.shape
    each, mask = 8 // bits, 2**bits - 1
    # Shifted by an array, not stacked: on a GPU XLA writes what is stacked to memory.
    shifts = jnp.array([8 - bits * (place + 1) for place in range(each)], jnp.uint8)
    shifts = shifts.reshape(*(1 for _ in layer), 1, each, 1)
    return ((held[..., None, :] >> shifts) & jnp.uint8(mask)).reshape(*layer, each * count, outputs)
