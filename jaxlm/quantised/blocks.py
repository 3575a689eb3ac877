"""Blocks of inputs that share a scale, for each output its own."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrun.process.errors import UserError

LEAST = 16
"""Inputs that share a scale at the least."""


def block_of(inputs: int, most: int) -> int:
    """Returns the inputs of a block: `most`, or the largest power of two that divides the inputs.

    Args:
        inputs: Of the matrix.
        most: A power of two.

    Raises:
        UserError: Blocks of `LEAST` do not divide them.
    """
    found = min(most, inputs & -inputs)
    if found < LEAST:
        raise UserError(f"model.quantize: a matrix of {inputs:,} inputs, expected a multiple of {LEAST}, or int8")
    return found


def in_blocks(matrix: Float[Array, "*layer in out"], blocks: int) -> Float[Array, "*layer blocks block out"]:
    """Returns a matrix whose inputs are cut into so many blocks."""
    *layer, inputs, outputs = matrix.shape
    return matrix.reshape(*layer, blocks, inputs // blocks, outputs)


def of_blocks(matrix: Float[Array, "*layer blocks block out"]) -> Float[Array, "*layer in out"]:
    """Returns a matrix whose inputs follow each other."""
    *layer, blocks, block, outputs = matrix.shape
    return matrix.reshape(*layer, blocks * block, outputs)


def times_scale(
    numbers: Float[Array, "*layer in out"], scale: Float[Array, "*layer blocks out"]
) -> Float[Array, "*layer in out"]:
    """Multiplies each block by its scale, in float32."""
    return of_blocks(in_blocks(numbers, scale.shape[-2]) * scale.astype(jnp.float32)[..., None, :])
