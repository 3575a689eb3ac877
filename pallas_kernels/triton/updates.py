"""An optimizer's passes over the slots that take part, for NVIDIA GPUs from Ampere on."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pallas_kernels import device
from pallas_kernels.moments import read
from pallas_kernels.slot_updates import Half, Places, Stack, Trained, Update, Visited
from pallas_kernels.triton import update_kernels
from pallas_kernels.triton.launch import launch

BLOCK, WARPS, PROGRAMS = 1024, 4, 7
"""Numbers of a block, warps that share it, and programs of a multiprocessor."""


def squares(halves: Sequence[Half], places: Places, visited: Visited) -> Float[Array, " slots"]:
    """See `pallas_kernels.slot_updates.squares`."""
    blocks = [_blocks(half.stack) for half in halves]
    found = jnp.zeros((visited.which.shape[0], sum(blocks)), jnp.float32)
    kernel, number = update_kernels.slot_squares, {"ALL": sum(blocks)}
    for half, begin in zip(halves, np.cumsum([0, *blocks[:-1]]), strict=True):
        (found,) = _launch(kernel, [found], [half.stack], half, half.stack, places, visited, begin, **number)
    return jnp.sum(found, axis=1)


def gathered(sums: Half, gradients: Stack, places: Places, begin: Bool[Array, " slots"], visited: Visited) -> Stack:
    """See `pallas_kernels.slot_updates.gathered`."""
    read = [gradients, begin.astype(jnp.int32)]
    return _launch(update_kernels.slot_sums, [sums.stack], read, sums, gradients, places, visited)[0]


def adamw(
    trained: Trained, rank_axis: int, gradients: Stack, places: Places, update: Update, visited: Visited
) -> Trained:
    """See `pallas_kernels.slot_updates.adamw`; takes float32 moments and one running average at most."""
    numbers = jnp.stack([*update[:-1], *update.shares], axis=1)
    kernel = update_kernels.slot_adamw_averaged if trained.averages else update_kernels.slot_adamw
    written = [trained.weights, *map(read, (trained.mu, trained.nu)), *trained.averages]
    own, number = Half(trained.weights, rank_axis), {"NUMBERS": numbers.shape[1]}
    w, mu, nu, *averages = _launch(kernel, written, [gradients, numbers], own, gradients, places, visited, **number)
    return Trained(w, mu, nu, tuple(averages))


def _launch(
    kernel: Any,
    written: Sequence[Array],
    read: Sequence[Array],
    half: Half,
    gradients: Stack,
    places: Places,
    visited: Visited,
    begin: int = 0,
    **constants: int,
) -> Sequence[Array]:
    """Returns the arrays that a kernel has written in place."""
    layers, _, *shape = half.stack.shape
    slots, n = visited.which.shape[0], shape[0] * shape[1]
    order = jnp.argsort(~visited.which, stable=True).astype(jnp.int32)
    return launch(
        kernel,
        [
            *written,
            *read,
            order,
            jnp.sum(visited.which, dtype=jnp.int32)[None],
            jnp.arange(slots, dtype=jnp.int32) if places is None else places,
            visited.ranks,
            jnp.array([layers, slots, n, gradients.shape[1], begin], jnp.int32),
        ],
        [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in written],
        grid=(device.multiprocessors() * PROGRAMS,),
        num_warps=WARPS,
        num_stages=1,
        in_place=len(written),
        RANK=shape[half.rank_axis],
        ROWS=half.rank_axis == 0,
        EVEN=n % 16 == 0,
        BLOCK=BLOCK,
        PROGRAMS=device.multiprocessors() * PROGRAMS,
        **constants,
    )


def _blocks(stack: Stack) -> int:
    layers, _, *shape = stack.shape
    return layers * -(-shape[0] * shape[1] // BLOCK)
