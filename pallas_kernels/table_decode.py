"""Matrices in four bits that stand for numbers of a table, made dense in bfloat16 by a kernel of NVIDIA GPUs."""

from math import prod

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, BFloat16, Float32, UInt8

from pallas_kernels.api import IMPLEMENTATIONS

COLUMNS, ROWS, WARPS = 256, 4, 4
"""Outputs of a program, its rows of bytes at a time, and its warps: the fastest of three on an H200."""
MOST_ROWS = 64
"""Rows of bytes of a block at the most, which are unrolled."""


def decodes(values: UInt8[Array, "*layer half out"], scale: Array, dtype: DTypeLike) -> bool:
    """Whether the kernel makes a matrix dense in `dtype` here: one that XLA may cut over a mesh by itself, it does not.

    Args:
        values: As of `table_dense`.
        scale: Likewise.
        dtype: What is asked for.
    """
    manual, rows = jax.sharding.get_abstract_mesh(), values.shape[-2] // scale.shape[-2]
    alone = jax.device_count() == 1 or (bool(manual.axis_names) and len(manual.manual_axes) == len(manual.axis_names))
    fits = rows % ROWS == 0 and rows <= MOST_ROWS
    return jnp.dtype(dtype) == jnp.bfloat16 and fits and alone and not IMPLEMENTATIONS["triton"].device()


def table_dense(
    values: UInt8[Array, "*layer half out"], scale: Float32[Array, "*layer blocks out"], table: Float32[Array, "16"]
) -> BFloat16[Array, "*layer in out"]:
    """Returns table[values] * scale, multiplied in float32 and rounded once.

    Args:
        values: Places in the table, two in a byte: of inputs that follow each other the first has the upper bits.
        scale: Of each block of inputs, whose number is a multiple of 8; no gradient reaches it.
        table: The numbers.
    """
    # Imports Triton, which is optional.
    from pallas_kernels.triton.launch import launch
    from pallas_kernels.triton.table_kernel import table_dense

    *layer, half, outputs = values.shape
    blocks = scale.shape[-2]
    (made,) = launch(
        table_dense,
        [values, jax.lax.stop_gradient(scale), table],
        [jax.ShapeDtypeStruct((*layer, 2 * half, outputs), jnp.bfloat16)],
        grid=(-(-outputs // COLUMNS), prod(layer) * blocks),
        num_warps=WARPS,
        num_stages=1,
        N=outputs,
        BLOCK=half // blocks,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
    )
    return made
