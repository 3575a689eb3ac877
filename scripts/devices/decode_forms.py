"""Ways to make a matrix in four bits dense, of the same bits: looked up by XLA, selected, or by a Triton kernel."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxlm.quantised.blocks import in_blocks, of_blocks, times_scale
from jaxlm.quantised.int4 import Int4Weight
from jaxlm.quantised.nf4 import TABLES, TableWeight

TABLE = TABLES["nf4"]


def shifted(held: UInt8[Array, "*layer half out"]) -> UInt8[Array, "*layer in out"]:
    """Returns the numbers in bytes, of which each is read by the two that it holds."""
    *layer, half, outputs = held.shape
    places = jnp.array([4, 0], jnp.uint8)[:, None]
    return ((held[..., None, :] >> places) & 15).reshape(*layer, 2 * half, outputs)


def looked_up(numbers: UInt8[Array, "*layer in out"]) -> Float[Array, "*layer in out"]:
    """Returns the table's numbers."""
    return jnp.asarray(TABLE).at[numbers.astype(jnp.int32)].get(mode="promise_in_bounds")


def selected(numbers: UInt8[Array, "*layer in out"]) -> Float[Array, "*layer in out"]:
    """Returns the table's numbers, each half of what is left chosen by a bit."""
    left = [jnp.float32(value) for value in TABLE]
    for bit in range(4):
        left = _halved(left, numbers, bit)
    return left[0]


def summed(numbers: UInt8[Array, "*layer in out"]) -> Float[Array, "*layer in out"]:
    """Returns the table's numbers: the last bit times how far two of them are apart, then selected."""
    last = (numbers & 1).astype(jnp.float32)
    left = [low + last * (high - low) for low, high in zip(TABLE[::2], TABLE[1::2], strict=True)]
    for bit in range(1, 4):
        left = _halved(left, numbers, bit)
    return left[0]


def _halved(left: list[Array], numbers: UInt8[Array, "*layer in out"], bit: int) -> list[Array]:
    has = (numbers & np.uint8(1 << bit)) != 0
    return [jnp.where(has, high, low) for low, high in zip(left[::2], left[1::2], strict=True)]


def _by_xla(numbers_of: Callable[[Array], Array]) -> Callable[[TableWeight], Array]:
    return lambda one: times_scale(numbers_of(shifted(one.values)), one.scale).astype(jnp.bfloat16)


def _by_triton(columns: int, rows: int, warps: int) -> Callable[[TableWeight], Array]:
    def dense(one: TableWeight) -> Array:
        # Imports Triton, which is optional.
        from decode_kernel import table_dense

        from pallas_kernels.triton.launch import launch

        *layer, half, outputs = one.values.shape
        layers, blocks = int(np.prod(layer)), one.scale.shape[-2]
        (made,) = launch(
            table_dense,
            [one.values, one.scale, jnp.asarray(TABLE)],
            [jax.ShapeDtypeStruct((*layer, 2 * half, outputs), jnp.bfloat16)],
            grid=(-(-outputs // columns), layers * blocks),
            num_warps=warps,
            num_stages=1,
            N=outputs,
            BLOCK=half // blocks,
            ROWS=rows,
            COLUMNS=columns,
        )
        return made

    return dense


def _whole(one: Int4Weight) -> Array:
    numbers = in_blocks(shifted(one.values).astype(jnp.float32), one.scale.shape[-2])
    zero, scale = (each.astype(jnp.float32)[..., None, :] for each in (one.zero, one.scale))
    return of_blocks((numbers - zero) * scale).astype(jnp.bfloat16)


FORMS: dict[str, dict[str, Callable[[Any], Array]]] = {
    "nf4": {"table": _by_xla(looked_up), "selects": _by_xla(selected), "sums, selects": _by_xla(summed)},
    "int4": {"shifted": _whole},
}
"""By what they make dense, and by name."""
KERNELS: dict[str, Callable[[Any], Array]] = {
    "kernel 256": _by_triton(256, 4, 4),
    "kernel 512": _by_triton(512, 2, 4),
    "kernel 1024": _by_triton(1024, 1, 4),
}
"""Those of nf4 that need Triton and a GPU."""
