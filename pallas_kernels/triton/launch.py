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
    **constants: int,
) -> Sequence[Array]:
    """Returns a kernel's outputs, whose pointers follow those of its operands."""
    return jax_triton.triton_call(
        *operands,
        kernel=kernel,
        out_shape=list(outputs),
        grid=grid,
        num_warps=num_warps,
        num_stages=num_stages,
        **constants,
    )
