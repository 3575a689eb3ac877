"""H = s·drop(X)·D: one pass over X, with the slot looked up per row tile and the dropout mask made on the way.

A thread block owns 64 rows: one warpgroup fetches, the other multiplies. Where rows drop features, X goes through
registers, which hold the left operand of the product anyway.
"""

import functools
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.dropout import Dropout, thresholds
from pallas_kernels.mosaic_gpu.blocks import TILE_M, h_width, named, store, swizzled
from pallas_kernels.mosaic_gpu.mask import keep_tile

ROWS = 64
STEP = 64


def down_projection(
    x: Float[Array, "m k"],
    down: Float[Array, "slots rank k"],
    scale: Float[Array, " slots"],
    tile_slots: Int[Array, " m_tiles"],
    dropout: Dropout | None = None,
    *,
    stages: int,
) -> Float[Array, "m h_width"]:
    """Returns H = s_g·drop(X)·D_gᵀ, bfloat16; the columns beyond the rank are not written.

    Args:
        x: bfloat16 [m, k].
        down: bfloat16 [slots, rank, k].
        scale: float32 [slots].
        tile_slots: int32 [m / 128]; `slots` for rows of none, whose H is zero.
        dropout: Drops features of X; None for none.
        stages: K steps in flight.
    """
    (m, k), (slots, rank, _) = x.shape, down.shape
    per_row = [] if dropout is None else [dropout.token_keys, *thresholds(dropout)]
    return plgpu.kernel(
        named(
            functools.partial(_entry, rank=rank, stages=min(stages, k // STEP), drops=dropout is not None),
            f"down_projection_{k}x{rank}",
        ),
        out_type=jax.ShapeDtypeStruct((m, h_width(rank)), x.dtype),
        grid=(m // ROWS,),
        grid_names=("rows",),
        num_threads=2,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )(x, down.reshape(slots * rank, k), scale, tile_slots, *per_row)


def _entry(x: Any, down: Any, scale: Any, slot_of: Any, *rest: Any, rank: int, stages: int, drops: bool) -> None:
    *per_row, h = rest
    pl.run_scoped(
        functools.partial(_kernel, x, down, scale, slot_of, per_row, h, rank=rank, stages=stages, drops=drops),
        x_s=plgpu.SMEM((stages, ROWS, STEP), x.dtype, transforms=swizzled(STEP)),
        down_s=plgpu.SMEM((stages, rank, STEP), x.dtype, transforms=swizzled(STEP)),
        full=plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        free=plgpu.Barrier(num_barriers=stages),
        collective_axes="wg",
    )


def _kernel(
    x: Any,
    down: Any,
    scale: Any,
    slot_of: Any,
    per_row: Any,
    h: Any,
    *,
    x_s: Any,
    down_s: Any,
    full: Any,
    free: Any,
    rank: int,
    stages: int,
    drops: bool,
) -> None:
    tile = lax.axis_index("rows")
    slot = slot_of[lax.div(tile, jnp.int32(TILE_M // ROWS))]
    rows = pl.ds(tile * ROWS, ROWS)
    steps = x.shape[1] // STEP

    live = slot < scale.shape[0]

    @pl.when(jnp.logical_not(live) & (lax.axis_index("wg") == 0))
    def clear() -> None:
        zeros = jnp.zeros((ROWS, rank), x.dtype)
        store(h.at[rows, pl.ds(0, rank)], plgpu.layout_cast(zeros, plgpu.Layout.WGMMA))

    @pl.when(live & (lax.axis_index("wg") == 1))
    def fetch() -> None:
        @pl.loop(0, steps)
        def step(at: Array) -> None:
            stage = lax.rem(at, jnp.int32(stages))

            @pl.when(at >= stages)
            def reuse() -> None:
                plgpu.barrier_wait(free.at[stage])

            features = pl.ds(at * STEP, STEP)
            plgpu.copy_gmem_to_smem(x.at[rows, features], x_s.at[stage], full.at[stage])
            plgpu.copy_gmem_to_smem(down.at[pl.ds(slot * rank, rank), features], down_s.at[stage], full.at[stage])

    @pl.when(live & (lax.axis_index("wg") == 0))
    def multiply() -> None:
        if drops:
            keys, threshold, kept = per_row
            low, factor = threshold[slot], kept[slot].astype(x.dtype)

        def product(acc: Any) -> Array:
            @pl.loop(0, steps)
            def step(at: Array) -> None:
                stage = lax.rem(at, jnp.int32(stages))
                plgpu.barrier_wait(full.at[stage])
                right = down_s.at[stage].transpose((1, 0))
                if drops:
                    left = plgpu.load(x_s.at[stage], layout=plgpu.Layout.WGMMA)
                    keep = keep_tile(keys.at[rows], at * STEP, low, (ROWS, STEP))
                    left = jnp.where(keep, left * factor, jnp.zeros_like(left))
                    plgpu.wgmma(acc, left, right)
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(free.at[stage])
                else:
                    plgpu.wgmma(acc, x_s.at[stage], right)
                    plgpu.wgmma_wait(1)

                    @pl.when(at > 0)
                    def release() -> None:
                        plgpu.barrier_arrive(free.at[lax.rem(at - 1, jnp.int32(stages))])

            return acc[...]

        total = pl.run_scoped(product, plgpu.ACC((ROWS, rank), jnp.float32))
        store(h.at[rows, pl.ds(0, rank)], (total * scale[slot]).astype(x.dtype))
