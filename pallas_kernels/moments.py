"""AdamW's moments in fewer bits than float32: bfloat16, or 8 bits with a scale for each block.

Eight bits are levels on a logarithmic scale; as in Dettmers et al. 2021 (arXiv 2110.02861) blocks have scales of their
own. A block is a part of one column of A or of one row of B, so that a trial's are the same whatever ranks others have.
Numbers are rounded up or down by a dither that depends on their place and on the optimizer step alone, so that changes
smaller than a level add up, as they do not where the nearest level is taken: a second moment of beta2 0.999 changes by
less than half of bfloat16's last place.
"""

import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Int

Kind = Literal["float32", "bfloat16", "int8"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BLOCK = 64
"""Numbers that share a scale, or the largest power of two below that divides a column of A or a row of B."""
FIRST_OCTAVE, SECOND_OCTAVE = 8, 12
"""Levels of a factor of two: 127 of a first moment reach 2^-16 of the block's largest, 255 of a second one 2^-21, where
its root is 1 / 1,500."""
LEAST_SCALE = 2.0**-96
"""Blocks whose largest number is less are zero: none of their levels would be a normal number."""
_GOLDEN = 2654435769  # 2^32 / golden ratio: its multiples are spread evenly over 32 bits


class Blocks(NamedTuple):
    """Moments in 8 bits.

    Attributes:
        codes: int8 [..., in, out] of first moments, uint8 of second ones: the level, with the number's sign; 0 is zero.
        scales: float32, the largest absolute value of each block; axes are those of `codes`.
    """

    codes: Int[Array, "*stack in out"]
    scales: Float[Array, "*stack blocks_in blocks_out"]


type Moment = Float[Array, "*stack in out"] | BFloat16[Array, "*stack in out"] | Blocks
"""Moments as they are kept."""


def bytes_each(kind: Kind) -> float:
    """Returns the bytes of a moment, its part of a scale included."""
    return {"float32": 4, "bfloat16": 2, "int8": 1 + 4 / BLOCK}[kind]


def zeros(stack: Float[Array, "*stack in out"], rank_axis: int, kind: Kind, *, signed: bool) -> Moment:
    """Returns moments of an array, all zero.

    Args:
        stack: The array.
        rank_axis: Axis of the rank within [in, out]; blocks lie along the other.
        kind: How they are kept.
        signed: Whether they are first moments.
    """
    if kind != "int8":
        return jnp.zeros_like(stack, jnp.dtype(kind))
    shape, axis = list(stack.shape), -2 if rank_axis == 1 else -1
    shape[axis] //= math.gcd(BLOCK, shape[axis])
    return Blocks(jnp.zeros_like(stack, jnp.int8 if signed else jnp.uint8), jnp.zeros(shape, jnp.float32))


def read(moment: Moment) -> Float[Array, "*stack in out"]:
    """Returns moments in float32."""
    if not isinstance(moment, Blocks):
        return moment.astype(jnp.float32)
    levels = jnp.abs(moment.codes.astype(jnp.float32))
    value = jnp.where(levels > 0, _value(levels, moment), 0) * _over_blocks(moment.scales, moment)
    return jnp.where(moment.codes < 0, -value, value)


def kept(
    values: Float[Array, "*stack in out"], like: Moment, dither: Float[Array, "*stack in out"] | float = 0.5
) -> Moment:
    """Returns moments as they are kept; those that `read` returned come out as they were.

    Args:
        values: Finite moments.
        like: Moments that are kept so, in as many blocks.
        dither: At least 0 and below 1; a number is rounded up where it is nearer to the next one than that. 0.5 takes
            the nearest.
    """
    if isinstance(like, Blocks):
        return _in_blocks(values, like, dither)
    if like.dtype == jnp.float32:
        return values
    if isinstance(dither, float):
        return values.astype(like.dtype)
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32) + (dither * 2**16).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def dither_of(shape: tuple[int, ...], steps: Int[Array, " slots"], salt: int) -> Float[Array, "layers slots in out"]:
    """Returns numbers from 0 to 1 that are spread evenly over the steps of each place.

    Args:
        shape: Of stacked adapters.
        steps: Optimizer steps of each slot.
        salt: Another for what must not be rounded alike.
    """

    def along(axis: int, factor: int) -> Array:
        places = (1, 1, *shape[2:]) if axis else (shape[0], 1, 1, 1)
        return jax.lax.broadcasted_iota(jnp.uint32, places, axis) * jnp.uint32(factor)

    place = along(0, 0x9E3779B1) ^ (along(2, 0x85EBCA77) + along(3, 0xC2B2AE3D)) ^ jnp.uint32(salt)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        place = (place ^ (place >> shift)) * jnp.uint32(factor)
    turns = steps.astype(jnp.uint32)[None, :, None, None] * jnp.uint32(_GOLDEN)
    return ((place + turns) >> 8).astype(jnp.float32) * 2.0**-24


def _in_blocks(values: Array, like: Blocks, dither: Array | float) -> Blocks:
    *stack, rows, columns = values.shape
    counts = like.scales.shape[-2:]
    split = jnp.abs(values).reshape(*stack, counts[0], rows // counts[0], counts[1], columns // counts[1])
    scales = jnp.max(split, axis=(-3, -1))
    scales = jnp.where(scales < LEAST_SCALE, 0, scales)
    wide = _over_blocks(scales, like)
    share = jnp.where(wide > 0, jnp.abs(values) / jnp.where(wide > 0, wide, 1), 0)
    top, octave = _levels(like)
    signed = like.codes.dtype == jnp.int8
    level = jnp.floor(top + octave * jnp.log2(jnp.maximum(share, 2.0**-40)))
    level = jnp.clip(level, 0 if signed else 1, top)
    below = jnp.where(level > 0, _value(level, like), 0)
    up = share - below > dither * (_value(level + 1, like) - below)
    level = jnp.where(share > 0, jnp.minimum(level + up.astype(jnp.float32), top), 0)
    return Blocks(jnp.where(values < 0, -level, level).astype(like.codes.dtype), scales)


def _levels(moment: Blocks) -> tuple[int, int]:
    """Returns the highest level, and the levels of a factor of two."""
    return (127, FIRST_OCTAVE) if moment.codes.dtype == jnp.int8 else (255, SECOND_OCTAVE)


def _value(level: Array, moment: Blocks) -> Array:
    """Returns a level's share of its block's scale."""
    top, octave = _levels(moment)
    return jnp.exp2((level - top) / octave)


def _over_blocks(scales: Array, moment: Blocks) -> Array:
    """Returns the scale of every number."""
    for axis in (-2, -1):
        scales = jnp.repeat(scales, moment.codes.shape[axis] // moment.scales.shape[axis], axis=axis)
    return scales
