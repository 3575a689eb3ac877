"""Eight bits: whole numbers from -127 to 127, times a scale for every output, or for every block of its inputs."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

from jaxlm.devices.frozen_weight import FrozenWeight
from jaxlm.quantised.blocks import times_scale

LARGEST = 127


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Weight(FrozenWeight):
    """A matrix in int8.

    Attributes:
        values: The numbers.
        scale: Of each output, whose inputs are one block or several.
        kind: What it is called.
        grouped: Whether they are several, also where a device holds one of them.
    """

    values: Int8[Array, "*layer in out"]
    scale: Float[Array, "*layer blocks out"]
    kind: str = field(default="int8", metadata={"static": True})
    grouped: bool = field(default=False, metadata={"static": True})

    @property
    def name(self) -> str:
        """What the form is called."""
        return self.kind

    def dense(self, dtype: DTypeLike) -> Float[Array, "*layer in out"]:
        """Returns the matrix, computed in float32."""
        return times_scale(self.values.astype(jnp.float32), self.scale).astype(dtype)

    def along[T](self, inputs: T, outputs: T) -> tuple[tuple[T | None, T | None], ...]:
        """Returns what lies along rows and columns of values and scale."""
        return (inputs, outputs), (inputs if self.grouped else None, outputs)


def int8(matrix: Float[Array, "*layer in out"]) -> Int8Weight:
    """Packs a matrix, rounding to the nearest; a scale for every output, of its largest number."""
    scale = jnp.max(jnp.abs(matrix), axis=-2, keepdims=True) / LARGEST
    values = jnp.round(matrix / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
    return Int8Weight(values, scale)
