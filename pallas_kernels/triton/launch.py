"""Launches Triton kernels inside JAX programs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax_triton
from jax import Array


def launch(
    kernel: Any,
    operands: Sequence[Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    grid: tuple[int, ...],
    num_warps: int,
    num_stages: int,
    in_place: int = 0,
    **constants: int,
) -> Sequence[Array]:
    """Returns a kernel's outputs, whose pointers follow those of its operands.

    The first `in_place` of them lie where as many operands do, which are written over.
    """
    return jax_triton.triton_call(
        *operands,
        kernel=kernel,
        out_shape=list(outputs),
        grid=grid,
        num_warps=num_warps,
        num_stages=num_stages,
        input_output_aliases={at: at for at in range(in_place)},
        **constants,
    )
