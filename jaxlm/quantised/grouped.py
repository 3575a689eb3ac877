"""GGUF's blocks of four to six bits: a scale for each group of inputs, and factors of several groups' scales."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float16, Num, UInt8

from jaxlm.devices.frozen_weight import FrozenWeight
from jaxlm.quantised.bits import unpacked
from jaxlm.quantised.blocks import in_blocks, of_blocks, times_scale


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupedWeight(FrozenWeight):
    """A matrix in few bits: (values - zero) * scale * factor - least * least_factor.

    Attributes:
        values: The lower four bits of the numbers, two in a byte.
        upper: Their other bits, 8 or 4 in a byte; None where four are all.
        scale: Of each group.
        least: What each group begins below 0, likewise; None is 0.
        factor: Of the scales of several groups; None is 1.
        least_factor: Likewise of `least`.
        zero: The number that stands for 0.
        kind: What GGUF calls it.
    """

    values: UInt8[Array, "*layer half out"]
    upper: UInt8[Array, "*layer bytes out"] | None
    scale: Num[Array, "*layer groups out"]
    least: Num[Array, "*layer groups out"] | None
    factor: Float16[Array, "*layer blocks out"] | None
    least_factor: Float16[Array, "*layer blocks out"] | None
    zero: int = field(metadata={"static": True})
    kind: str = field(metadata={"static": True})

    @property
    def name(self) -> str:
        """What the form is called."""
        return self.kind

    def dense(self, dtype: DTypeLike) -> Float[Array, "*layer in out"]:
        """Returns the matrix, computed in float32, to the bit what dequantising the file gives."""
        numbers = unpacked(self.values)
        if self.upper is not None:
            bits = 8 * self.upper.shape[-2] // numbers.shape[-2]
            numbers = numbers | (unpacked(self.upper, bits) << 4)
        values = numbers.astype(jnp.float32) - self.zero
        scale = _times(self.scale, self.factor)
        if self.least is None:
            return times_scale(values, scale).astype(dtype)
        least = _times(self.least, self.least_factor)
        groups = in_blocks(values, scale.shape[-2]) * scale[..., None, :] - least[..., None, :]
        return of_blocks(groups).astype(dtype)

    def along[T](self, inputs: T, outputs: T) -> tuple[tuple[T | None, T | None], ...]:
        """Returns what lies along rows and columns of every array."""
        return ((inputs, outputs),) * len(jax.tree.leaves(self))


def _times(scale: Num[Array, "*layer groups out"], factor: Array | None) -> Float[Array, "*layer groups out"]:
    return scale.astype(jnp.float32) if factor is None else times_scale(scale.astype(jnp.float32), factor)
