"""Floats of eight bits, e4m3, times a scale: of a block of inputs and outputs, of an output, or of all."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlm.devices.frozen_weight import FrozenWeight


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fp8Weight(FrozenWeight):
    """A matrix in float8_e4m3fn.

    Attributes:
        values: The numbers.
        scale: Of each block; one row or one column stands for all inputs or outputs.
        grouped: Whether inputs have several scales, and whether outputs have, also where a device holds one of them.
    """

    values: Float[Array, "*layer in out"]
    scale: Float[Array, "*layer rows columns"]
    grouped: tuple[bool, bool] = field(metadata={"static": True})

    @property
    def name(self) -> str:
        """What the form is called."""
        return "fp8"

    def dense(self, dtype: DTypeLike) -> Float[Array, "*layer in out"]:
        """Returns the matrix, computed in float32."""
        scale = self.scale.astype(jnp.float32)
        for axis in (-2, -1):
            scale = jnp.repeat(scale, self.values.shape[axis] // scale.shape[axis], axis)
        return (self.values.astype(jnp.float32) * scale).astype(dtype)

    def along[T](self, inputs: T, outputs: T) -> tuple[tuple[T | None, T | None], ...]:
        """Returns what lies along rows and columns of values and scale."""
        rows, columns = self.grouped
        return (inputs, outputs), (inputs if rows else None, outputs if columns else None)
