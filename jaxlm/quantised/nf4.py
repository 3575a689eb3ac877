"""Four bits that stand for 16 numbers of a table, times the largest of a block: bitsandbytes' nf4 and fp4.

Source: QLoRA (arXiv 2305.14314), and the tables of ``bitsandbytes.functional.get_4bit_type``.
"""

import itertools
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from jaxlm.devices.frozen_weight import FrozenWeight
from jaxlm.quantised.bits import packed, unpacked
from jaxlm.quantised.blocks import block_of, in_blocks, of_blocks, times_scale
from jaxlm.quantised.nested_scales import NestedScales, nested
from pallas_kernels.table_decode import decodes, table_dense

BLOCK = 64
"""Inputs that share a scale, as bitsandbytes has it."""
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
Code = Literal["nf4", "fp4"]
TABLES: dict[Code, np.ndarray] = {
    "nf4": np.array(_NF4, np.float32),
    "fp4": np.array([*_FP4, *(-value for value in _FP4)], np.float32) / np.float32(12),
}
"""The numbers that 0 to 15 stand for."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TableWeight(FrozenWeight):
    """A matrix in four bits: table[values] * scale.

    Attributes:
        values: Places in the table, two in a byte.
        scale: The largest magnitude of each block, itself in eight bits or not.
        code: Which table.
    """

    values: UInt8[Array, "*layer half out"]
    scale: Float[Array, "*layer blocks out"] | NestedScales
    code: Code = field(default="nf4", metadata={"static": True})

    @property
    def name(self) -> str:
        """What the form is called."""
        return f"{self.code}_double" if isinstance(self.scale, NestedScales) else self.code

    def dense(self, dtype: DTypeLike) -> Float[Array, "*layer in out"]:
        """Returns the matrix, computed in float32."""
        table = jnp.asarray(TABLES[self.code])
        scale = self.scale.dense() if isinstance(self.scale, NestedScales) else self.scale
        if decodes(self.values, scale, dtype):
            return table_dense(self.values, scale, table)
        numbers = table.at[unpacked(self.values).astype(jnp.int32)].get(mode="promise_in_bounds")
        return times_scale(numbers, scale).astype(dtype)

    def along[T](self, inputs: T, outputs: T) -> tuple[tuple[T | None, T | None], ...]:
        """Returns what lies along rows and columns of values and scale, or places, factor and mean."""
        alike = len(jax.tree.leaves(self)) - isinstance(self.scale, NestedScales)
        return ((inputs, outputs),) * alike + ((None, None),) * isinstance(self.scale, NestedScales)


def nf4(matrix: Float[Array, "*layer in out"]) -> TableWeight:
    """Packs a matrix: of each number over the largest of its block the nearest of the table.

    Blocks are of 64 inputs, or of 32 or 16 where the inputs are no multiple of more. Scales are float32.

    Raises:
        UserError: The inputs are no multiple of 16.
    """
    blocks = in_blocks(matrix, matrix.shape[-2] // block_of(matrix.shape[-2], BLOCK))
    scale = jnp.max(jnp.abs(blocks), axis=-2)
    shares = of_blocks(blocks / jnp.where(scale > 0, scale, 1)[..., None, :])
    table = TABLES["nf4"]
    places = sum((shares > (low + high) / 2).astype(jnp.uint8) for low, high in itertools.pairwise(table))
    return TableWeight(packed(places), scale)


def nf4_double(matrix: Float[Array, "*layer in out"]) -> TableWeight:
    """Packs a matrix as `nf4`, and then its scales.

    Raises:
        UserError: The inputs are no multiple of 16.
    """
    once = nf4(matrix)
    assert isinstance(once.scale, jax.Array)
    return TableWeight(once.values, nested(once.scale), once.code)
