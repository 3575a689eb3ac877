"""Sums over the rows of each slot, Xᵀ·H, which are the gradients of A and B: one pass over X for all slots and all H.

The row tiles of a slot are cut into segments of at most `chunk` tiles, so that a slot with many rows keeps every
multiprocessor busy. A thread block sums one segment of one block of columns; a second kernel adds the segments of each
slot in order.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.dropout import Dropout, thresholds
from pallas_kernels.mosaic_gpu.blocks import TILE_M, WARPGROUPS, named, store, swizzled
from pallas_kernels.mosaic_gpu.mask import keep_tile
from pallas_kernels.mosaic_gpu.tiles import SumTiles
from pallas_kernels.segments import Segments

ROWS = 64


def slot_sums(
    x: Float[Array, "m c"],
    hs: Sequence[Float[Array, "m h_width"]],
    segments: Segments,
    dropout: Dropout | None = None,
    m_slots: Int[Array, " m_tiles"] | None = None,
    *,
    rank: int,
    tiles: SumTiles,
    h_begin: int = 0,
) -> list[Float[Array, "slots c rank"]]:
    """Returns Xᵀ·H of each slot's rows for every H, float32; zero for a slot without rows.

    Args:
        x: bfloat16 [m, c].
        hs: bfloat16 [m, h_width] each, of which `rank` columns from `h_begin` on count.
        rank: The rank.
        segments: From `pallas_kernels.segments.cut`.
        dropout: Drops features of X; None for none.
        m_slots: int32 [m_tiles], the slot of each row tile; needed for dropout alone.
        tiles: Tile sizes.
        h_begin: The first column that counts.
    """
    c = x.shape[1]
    count = segments.start.shape[0]
    mask = [] if dropout is None else [m_slots, dropout.token_keys, *thresholds(dropout)]
    partial = plgpu.kernel(
        named(
            functools.partial(_entry, number=len(hs), h_begin=h_begin, tiles=tiles), f"slot_sums_{len(hs)}x{c}x{rank}"
        ),
        out_type=[jax.ShapeDtypeStruct((count, c, rank), jnp.float32) for _ in hs],
        grid=(tiles.sms,),
        grid_names=("sm",),
        num_threads=WARPGROUPS + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )(x, *hs, segments.order, segments.start, segments.tiles, *mask)
    return _add_segments(partial, segments)


def _entry(x: Any, *refs: Any, number: int, h_begin: int, tiles: SumTiles) -> None:
    hs, (order, start, count, *mask), outs = refs[:number], refs[number:-number], refs[-number:]
    pl.run_scoped(
        functools.partial(_kernel, x, hs, order, start, count, mask, outs, h_begin=h_begin, tiles=tiles),
        x_s=plgpu.SMEM((tiles.stages, ROWS, tiles.columns), x.dtype, transforms=swizzled(64)),
        h_s=[plgpu.SMEM((tiles.stages, ROWS, h.shape[1]), x.dtype, transforms=swizzled(64)) for h in hs],
        full=plgpu.Barrier(num_arrivals=1 + number, num_barriers=tiles.stages),
        free=plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=tiles.stages),
        collective_axes="wg",
    )


def _kernel(
    x: Any,
    hs: Any,
    order: Any,
    start: Any,
    count: Any,
    mask: Any,
    outs: Any,
    *,
    x_s: Any,
    h_s: Any,
    full: Any,
    free: Any,
    h_begin: int,
    tiles: SumTiles,
) -> None:
    rank, blocks = outs[0].shape[2], pl.cdiv(x.shape[1], tiles.columns)
    wg = lax.axis_index("wg")
    work = (start.shape[0], blocks)
    stages = jnp.int32(tiles.stages)
    halves = TILE_M // ROWS

    def rows_of(segment: Array, at: Array) -> Any:
        tile = order[start[segment] + lax.div(at, jnp.int32(halves))]
        return pl.ds(tile * TILE_M + lax.rem(at, jnp.int32(halves)) * ROWS, ROWS)

    @pl.when(wg == WARPGROUPS)
    def fetch() -> None:
        plgpu.set_max_registers(40, action="decrease")

        @plgpu.nd_loop(work, collective_axes="sm", init_carry=jnp.int32(0))
        def each(loop: plgpu.NDLoopInfo, carry: Array) -> Array:
            segment, block = loop.index
            columns = pl.ds(block * tiles.columns, tiles.columns)
            steps = count[segment] * halves

            @pl.loop(0, steps)
            def step(at: Array) -> None:
                stage = lax.rem(carry + at, stages)

                @pl.when(carry + at >= stages)
                def reuse() -> None:
                    plgpu.barrier_wait(free.at[stage])

                rows = rows_of(segment, at)
                plgpu.copy_gmem_to_smem(x.at[rows, columns], x_s.at[stage], full.at[stage])
                for h, into in zip(hs, h_s, strict=True):
                    plgpu.copy_gmem_to_smem(h.at[rows, :], into.at[stage], full.at[stage])

            return carry + steps

    @pl.when(wg < WARPGROUPS)
    def add() -> None:
        plgpu.set_max_registers(232, action="increase")
        width = tiles.columns // WARPGROUPS

        @plgpu.nd_loop(work, collective_axes="sm", init_carry=jnp.int32(0))
        def each(loop: plgpu.NDLoopInfo, carry: Array) -> Array:
            segment, block = loop.index
            steps = count[segment] * halves

            def segment_sums(*accs: Any) -> tuple[Array, ...]:
                @pl.loop(0, steps)
                def step(at: Array) -> None:
                    stage = lax.rem(carry + at, stages)
                    plgpu.barrier_wait(full.at[stage])
                    mine = x_s.at[stage, :, pl.ds(wg * width, width)]
                    if mask:
                        slots, keys, threshold, kept = mask
                        slot = slots[order[start[segment]]]
                        left = plgpu.load(mine, layout=plgpu.Layout.WGMMA)
                        first = block * tiles.columns + wg * width
                        keep = keep_tile(keys.at[rows_of(segment, at)], first, threshold[slot], (ROWS, width))
                        mine[...] = jnp.where(keep, left * kept[slot].astype(x.dtype), jnp.zeros_like(left))
                        plgpu.commit_smem()
                    for acc, right in zip(accs, h_s, strict=True):
                        plgpu.wgmma(acc, mine.transpose((1, 0)), right.at[stage])
                    plgpu.wgmma_wait(len(accs))

                    @pl.when(at > 0)
                    def release() -> None:
                        plgpu.barrier_arrive(free.at[lax.rem(carry + at - 1, stages)])

                plgpu.wgmma_wait(0)
                return tuple(acc[...] for acc in accs)

            accs = [plgpu.ACC((width, h.shape[1]), jnp.float32) for h in hs]
            totals = pl.run_scoped(segment_sums, *accs)

            @pl.when(steps > 0)
            def release_last() -> None:
                plgpu.barrier_arrive(free.at[lax.rem(carry + steps - 1, stages)])

            first = block * tiles.columns + wg * width

            @pl.when((steps > 0) & (first < x.shape[1]))
            def finish() -> None:
                for out, total in zip(outs, totals, strict=True):
                    store(out.at[segment, pl.ds(first, width), :], total[:, h_begin : h_begin + rank])

            return carry + steps


def _add_segments(
    partials: Sequence[Float[Array, "segments c rank"]], segments: Segments
) -> list[Float[Array, "slots c rank"]]:
    """Returns the sum of every slot's own segments; the others are not read, for they may hold anything."""
    slots, (_, c, rank) = segments.first.shape[0], partials[0].shape
    return plgpu.kernel(
        named(functools.partial(_add, parts=len(partials)), f"add_segments_{len(partials)}x{c}x{rank}"),
        out_type=[jax.ShapeDtypeStruct((slots, c, rank), jnp.float32) for _ in partials],
        grid=(slots, c // ROWS),
        grid_names=("slot", "block"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )(*partials, segments.first, segments.number)


def _add(*refs: Any, parts: int) -> None:
    partials, (first, number), outs = refs[:parts], refs[parts:-parts], refs[-parts:]
    slot, rows = lax.axis_index("slot"), pl.ds(lax.axis_index("block") * ROWS, ROWS)
    for partial, out in zip(partials, outs, strict=True):

        def add(at: Array, total: Array, partial: Any = partial) -> Array:
            own = partial.at[first[slot] + at, rows, :]
            return total + plgpu.load(own, layout=plgpu.Layout.WGMMA, optimized=False)

        nothing = plgpu.layout_cast(jnp.zeros((ROWS, out.shape[2]), jnp.float32), plgpu.Layout.WGMMA)
        store(out.at[slot, rows, :], lax.fori_loop(0, number[slot], add, nothing))
