"""Four bits: whole numbers from 0 to 15 less a zero point, times a scale, both of a group of inputs."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from jaxlm.devices.frozen_weight import FrozenWeight
from jaxlm.quantised.bits import packed, unpacked
from jaxlm.quantised.blocks import block_of, in_blocks, of_blocks

GROUP = 128
LARGEST = 15


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int4Weight(FrozenWeight):
    """A matrix in four bits: (values - zero) * scale.

    Attributes:
        values: The numbers, two in a byte.
        scale: Of each group.
        zero: The number that stands for 0, likewise.
        kind: What it is called.
        grouped: Whether an output has several groups, also where a device holds one of them.
    """

    values: UInt8[Array, "*layer half out"]
    scale: Float[Array, "*layer groups out"]
    zero: UInt8[Array, "*layer groups out"]
    kind: str = field(default="int4", metadata={"static": True})
    grouped: bool = field(default=True, metadata={"static": True})

    @property
    def name(self) -> str:
        """What the form is called."""
        return self.kind

    def dense(self, dtype: DTypeLike) -> Float[Array, "*layer in out"]:
        """Returns the matrix, computed in float32."""
        numbers = in_blocks(unpacked(self.values).astype(jnp.float32), self.scale.shape[-2])
        zero, scale = (one.astype(jnp.float32)[..., None, :] for one in (self.zero, self.scale))
        return of_blocks((numbers - zero) * scale).astype(dtype)

    def along[T](self, inputs: T, outputs: T) -> tuple[tuple[T | None, T | None], ...]:
        """Returns what lies along rows and columns of values, scale and zero."""
        groups = inputs if self.grouped else None
        return (inputs, outputs), (groups, outputs), (groups, outputs)


def int4(matrix: Float[Array, "*layer in out"]) -> Int4Weight:
    """Packs a matrix, rounding to the nearest; a group's numbers reach from its least to its largest, 0 among them.

    Groups are of 128 inputs, or of 64, 32 or 16 where the inputs are no multiple of more. Scales are bfloat16.

    Raises:
        UserError: The inputs are no multiple of 16.
    """
    groups = in_blocks(matrix, matrix.shape[-2] // block_of(matrix.shape[-2], GROUP))
    least, most = jnp.minimum(jnp.min(groups, axis=-2), 0), jnp.maximum(jnp.max(groups, axis=-2), 0)
    scale = ((most - least) / LARGEST).astype(jnp.bfloat16)
    step = jnp.where(scale > 0, scale, 1).astype(jnp.float32)
    zero = jnp.clip(jnp.round(-least / step), 0, LARGEST)
    numbers = jnp.clip(jnp.round(groups / step[..., None, :]) + zero[..., None, :], 0, LARGEST)
    return Int4Weight(packed(of_blocks(numbers).astype(jnp.uint8)), scale, zero.astype(jnp.uint8))
