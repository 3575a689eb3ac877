"""Y = X·W + H·U on Hopper: a base GEMM whose K loop is longer by the rank, H = s·X·D made beside it or given.

One persistent kernel of three warpgroups a thread block. The last one fetches: for every output tile it streams the K
steps of X, W and, where H is made here, of D into a ring of stages, running ahead of the other two across tiles. Those
multiply: each owns 64 rows of the 128-row tile. H stays in registers and is the left operand of the last step.

Rows that are of no slot, behind all others, are not multiplied: the order of work is that of the rows before them, so
every multiprocessor has as much to do as in a problem of those alone, and zeros are written for the rest.

Where H is made here, the tiles of the first block of columns make it, and come first in the order of work; the other
tiles of the same rows read it, and wait for it if they must. So H costs one more column of tiles a little, and X is not
read for it.

Invariants:
  - thread blocks take tiles in one order, so that a tile waits only for tiles that some block already works on;
  - a row tile of 128 rows belongs to one slot;
  - stage s is written only after both warpgroups (of every thread block that shares the copy) released it;
  - the up tile is written only after both warpgroups finished the rank step of the tile before.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.dropout import Dropout, thresholds
from pallas_kernels.mosaic_gpu.blocks import TILE_K, TILE_M, WARPGROUPS, h_width, named, store, swizzled
from pallas_kernels.mosaic_gpu.mask import keep_tile
from pallas_kernels.mosaic_gpu.tiles import GemmTiles


def adapter_gemm(
    x: Float[Array, "m k"],
    w: Float[Array, "..."],
    down: Float[Array, "slots rank k"] | None,
    up: Float[Array, "slots rank n"],
    scale: Float[Array, " slots"] | None,
    tile_slots: Int[Array, " m_tiles"],
    h: Float[Array, "m h_width"] | None = None,
    dropout: Dropout | None = None,
    *,
    transpose_w: bool,
    tiles: GemmTiles,
    h_begin: int = 0,
) -> tuple[Float[Array, "m n"], Float[Array, "m h_width"]]:
    """Returns Y = X·W + drop(H·U_g) and H = s_g·X·D_gᵀ, both bfloat16; sums are float32.

    Args:
        x: bfloat16 [m, k].
        w: bfloat16 [k, n], or [n, k] with `transpose_w`.
        down: bfloat16 [slots, rank, k]; None when `h` is given.
        up: bfloat16 [slots, rank, n].
        scale: float32 [slots]; None when `h` is given.
        tile_slots: int32 [m / 128], the slot of each row tile; `slots` for those of none, which are the last.
        h: bfloat16 [m, h_width(rank)], already scaled; None to make it here.
        dropout: Drops entries of H·U, which is what the gradient of dropout on X does; only where `h` is given.
        transpose_w: Whether W lies transposed.
        tiles: Tile sizes, see `tiles.py`.
        h_begin: The first of H's columns that count, where `h` is given.
    """
    (m, k), n, (slots, rank, _) = x.shape, w.shape[0] if transpose_w else w.shape[1], up.shape
    cluster = tiles.cluster
    grid = (m // (TILE_M * cluster), n // tiles.tile_n)
    flat_up = up.reshape(slots * rank, n)
    live = jnp.sum(tile_slots < slots, dtype=jnp.int32)
    operands = [x, w, flat_up, jnp.minimum(tile_slots, slots - 1), -(-live // cluster)[None]]
    if down is not None and scale is not None:
        operands += [scale, down.reshape(slots * rank, k)]
    elif h is not None:
        operands.append(h)
    else:
        raise ValueError("neither down and scale nor h is given")
    if dropout is not None:
        operands += [dropout.token_keys, *thresholds(dropout)]
    out_type = [jax.ShapeDtypeStruct((m, n), x.dtype)]
    if down is not None:
        out_type.append(jax.ShapeDtypeStruct((m, h_width(rank)), x.dtype))
    body = functools.partial(
        _entry,
        makes_h=down is not None,
        drops=dropout is not None,
        grid=grid,
        k=k,
        rank=rank,
        h_begin=h_begin,
        transpose_w=transpose_w,
        tiles=tiles,
    )
    outputs = plgpu.kernel(
        named(body, f"adapter_gemm_{k}x{n}{'_transposed' if transpose_w else ''}{'' if down is None else '_with_h'}"),
        out_type=out_type,
        grid=(tiles.sms // cluster,),
        grid_names=("sm",),
        cluster=(cluster,),
        cluster_names=("cluster",),
        num_threads=WARPGROUPS + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )(*operands)
    return outputs[0], outputs[1] if h is None else h


def _entry(
    *refs: Any,
    makes_h: bool,
    drops: bool,
    k: int,
    rank: int,
    h_begin: int,
    transpose_w: bool,
    tiles: GemmTiles,
    grid: Any,
) -> None:
    x, w, up, slot_of, live, *rest = refs
    scale, down, y, h = rest if makes_h else (None, None, rest[-1], rest[0])
    mask = rest[1:4] if drops else None
    stages, tile_n = tiles.stages, tiles.tile_n
    k_steps = k // TILE_K
    w_block = (tile_n, TILE_K) if transpose_w else (TILE_K, tile_n)
    bf16 = x.dtype
    copies = 3 if makes_h else 2
    free = (
        plgpu.ClusterBarrier(collective_axes=("cluster",), num_arrivals=WARPGROUPS, num_barriers=stages)
        if tiles.cluster > 1
        else plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages)
    )
    pl.run_scoped(
        functools.partial(
            _kernel,
            x,
            w,
            down,
            up,
            scale,
            slot_of,
            live,
            y,
            h,
            mask,
            makes_h=makes_h,
            k_steps=k_steps,
            rank=rank,
            h_begin=h_begin,
            transpose_w=transpose_w,
            tiles=tiles,
            grid=grid,
        ),
        x_s=plgpu.SMEM((stages, TILE_M, TILE_K), bf16, transforms=swizzled(TILE_K)),
        w_s=plgpu.SMEM((stages, *w_block), bf16, transforms=swizzled(w_block[1])),
        down_s=plgpu.SMEM((stages, rank, TILE_K), bf16, transforms=swizzled(TILE_K)) if makes_h else None,
        up_s=plgpu.SMEM((rank, tile_n), bf16, transforms=swizzled(rank)),
        out_s=plgpu.SMEM((WARPGROUPS, tiles.out_buffers, 64, tiles.out_n), bf16, transforms=swizzled(tiles.out_n)),
        full=plgpu.Barrier(num_arrivals=copies, num_barriers=stages),
        free=free,
        up_full=plgpu.Barrier(),
        up_free=plgpu.Barrier(num_arrivals=WARPGROUPS),
        collective_axes="wg",
    )


def _kernel(
    x: Any,
    w: Any,
    down: Any,
    up: Any,
    scale: Any,
    slot_of: Any,
    live: Any,
    y: Any,
    h: Any,
    mask: Any,
    *,
    x_s: Any,
    w_s: Any,
    down_s: Any,
    up_s: Any,
    out_s: Any,
    full: Any,
    free: Any,
    up_full: Any,
    up_free: Any,
    makes_h: bool,
    k_steps: int,
    rank: int,
    h_begin: int,
    transpose_w: bool,
    tiles: GemmTiles,
    grid: tuple[int, int],
) -> None:
    stages, tile_n = tiles.stages, tiles.tile_n
    wg = lax.axis_index("wg")
    # A block that is alone made H itself, earlier.
    signals = makes_h and tiles.sms // tiles.cluster > 1
    made: Any = pl.get_global(plgpu.SemaphoreType.REGULAR((grid[0] * tiles.cluster,))) if signals else None
    shared = "cluster" if tiles.cluster > 1 else None

    row_tiles = live[0]
    count = row_tiles * grid[1]
    ahead = row_tiles if makes_h else 0

    def place(index: Array) -> tuple[Array, Any, Any, Array]:
        """Row tile, rows and columns of a tile, and whether it makes H."""
        others = (row_tiles, max(grid[1] - 1, 1)) if makes_h else (row_tiles, grid[1])
        m_pair, n_tile = plgpu.planar_snake(jnp.maximum(index - ahead, 0), others, tiles.minor, tiles.width)
        first = index < ahead
        m_pair = jnp.where(first, index, m_pair)
        n_tile = jnp.where(first, 0, n_tile + 1) if makes_h else n_tile
        m_tile = m_pair * tiles.cluster + lax.axis_index("cluster")
        return m_tile, pl.ds(m_tile * TILE_M, TILE_M), pl.ds(n_tile * tile_n, tile_n), first

    def stage_of(step: Array | int) -> Array:
        return lax.rem(jnp.asarray(step, jnp.int32), jnp.int32(stages))

    def each_tile(work: Callable[[plgpu.NDLoopInfo], None]) -> None:
        @plgpu.nd_loop((grid[0] * grid[1],), collective_axes="sm")
        def each(loop: plgpu.NDLoopInfo) -> None:
            pl.when(loop.index[0] < count)(lambda: work(loop))

    @pl.when(wg == WARPGROUPS)
    def fetch() -> None:
        plgpu.set_max_registers(40, action="decrease")

        @each_tile
        def fetch_tile(loop: plgpu.NDLoopInfo) -> None:
            m_tile, rows, columns, first = place(loop.index[0])
            rank_rows = pl.ds(slot_of[m_tile] * rank, rank)

            @pl.loop(0, k_steps)
            def each_step(at: Array) -> None:
                step = loop.local_index * k_steps + at
                stage = stage_of(step)

                @pl.when(step >= stages)
                def reuse() -> None:
                    plgpu.barrier_wait(free.at[stage])

                ks = pl.ds(at * TILE_K, TILE_K)
                w_tile = w.at[columns, ks] if transpose_w else w.at[ks, columns]
                plgpu.copy_gmem_to_smem(x.at[rows, ks], x_s.at[stage], full.at[stage])
                plgpu.copy_gmem_to_smem(w_tile, w_s.at[stage], full.at[stage], collective_axes=shared)
                if makes_h:

                    @pl.when(first)
                    def fetch_down() -> None:
                        plgpu.copy_gmem_to_smem(down.at[rank_rows, ks], down_s.at[stage], full.at[stage])

                    @pl.when(jnp.logical_not(first))
                    def nothing_to_fetch() -> None:
                        plgpu.barrier_arrive(full.at[stage])

                @pl.when(at == min(stages, k_steps) - 1)
                def fetch_up() -> None:
                    @pl.when(loop.local_index > 0)
                    def reuse() -> None:
                        plgpu.barrier_wait(up_free)

                    plgpu.copy_gmem_to_smem(up.at[rank_rows, columns], up_s, up_full)

        # A neighbour's arrivals must have come before this block may end.
        steps = loop_count(count, tiles) * k_steps

        @pl.loop(0, jnp.minimum(steps, stages))
        def drain(at: Array) -> None:
            plgpu.barrier_wait(free.at[stage_of(steps - jnp.minimum(steps, stages) + at)])

    @pl.when(wg < WARPGROUPS)
    def multiply() -> None:
        plgpu.set_max_registers(232, action="increase")
        mine = pl.ds(wg * 64, 64)

        def write(part: Callable[[slice], Array], columns: Any, my_rows: Any) -> None:
            for at in range(tile_n // tiles.out_n):
                chunk = slice(at * tiles.out_n, (at + 1) * tiles.out_n)
                buffer = out_s.at[wg, at % tiles.out_buffers]
                plgpu.wait_smem_to_gmem(tiles.out_buffers - 1, wait_read_only=True)
                buffer[...] = part(chunk).astype(x.dtype)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(buffer, y.at[my_rows, columns].at[:, chunk])

        @each_tile
        def multiply_tile(loop: plgpu.NDLoopInfo) -> None:
            m_tile, _, columns, first = place(loop.index[0])
            my_rows = pl.ds(m_tile * TILE_M + wg * 64, 64)
            h_part = h.at[my_rows, pl.ds(h_begin, rank)]

            def main_loop(acc: Any, acc_h: Any | None) -> None:
                @pl.loop(0, k_steps)
                def each_step(at: Array) -> None:
                    step = loop.local_index * k_steps + at
                    stage = stage_of(step)
                    plgpu.barrier_wait(full.at[stage])
                    if acc_h is not None:
                        plgpu.wgmma(acc_h, x_s.at[stage, mine], down_s.at[stage].transpose((1, 0)))
                    w_tile = w_s.at[stage]
                    plgpu.wgmma(acc, x_s.at[stage, mine], w_tile.transpose((1, 0)) if transpose_w else w_tile)
                    plgpu.wgmma_wait(1 if acc_h is None else 2)

                    @pl.when(at > 0)
                    def release() -> None:
                        plgpu.barrier_arrive(free.at[stage_of(step - 1)])

                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(free.at[stage_of(loop.local_index * k_steps + k_steps - 1)])

            def finish(acc: Any, mine_h: Array) -> None:
                plgpu.barrier_wait(up_full)
                plgpu.wgmma(acc, mine_h, up_s)
                total = acc[...]
                plgpu.barrier_arrive(up_free)
                write(lambda chunk: total[:, chunk], columns, my_rows)

            def tile_with_h(acc: Any, acc_h: Any) -> None:
                main_loop(acc, acc_h)
                mine_h = (acc_h[...] * scale[slot_of[m_tile]]).astype(x.dtype)
                store(h_part, mine_h)
                if signals:
                    plgpu.semaphore_signal(made.at[m_tile], memory_scope="gpu")
                finish(acc, mine_h)

            def tile(acc: Any) -> None:
                main_loop(acc, None)
                if signals:
                    plgpu.semaphore_wait(made.at[m_tile], WARPGROUPS, decrement=False, memory_scope="gpu")
                finish(acc, plgpu.load(h_part, layout=plgpu.Layout.WGMMA, optimized=False))

            def tile_with_dropout(acc: Any) -> None:
                keys, threshold, kept = mask
                slot = slot_of[m_tile]
                main_loop(acc, None)
                total = acc[...]
                mine_h = plgpu.load(h_part, layout=plgpu.Layout.WGMMA, optimized=False)
                plgpu.barrier_wait(up_full)

                def part(chunk: slice) -> Array:
                    def product(small: Any) -> Array:
                        plgpu.wgmma(small, mine_h, up_s.at[:, chunk])
                        return small[...]

                    size = (64, chunk.stop - chunk.start)
                    delta = pl.run_scoped(product, plgpu.ACC(size, jnp.float32))
                    keep = keep_tile(keys.at[my_rows], columns.start + chunk.start, threshold[slot], size)
                    return total[:, chunk] + jnp.where(keep, delta * kept[slot], 0.0)

                write(part, columns, my_rows)
                plgpu.barrier_arrive(up_free)

            wide = plgpu.ACC((64, tile_n), jnp.float32)
            if makes_h:
                narrow = plgpu.ACC((64, rank), jnp.float32)
                pl.when(first)(lambda: pl.run_scoped(tile_with_h, wide, narrow))
                pl.when(jnp.logical_not(first))(lambda: pl.run_scoped(tile, wide))
            elif mask is not None:
                pl.run_scoped(tile_with_dropout, wide)
            else:
                pl.run_scoped(tile, wide)

        @plgpu.nd_loop((grid[0] * grid[1],), collective_axes="sm")
        def each_empty_tile(loop: plgpu.NDLoopInfo) -> None:
            @pl.when(loop.index[0] >= count)
            def clear() -> None:
                empty = loop.index[0] - count
                m_tile = (row_tiles + lax.div(empty, jnp.int32(grid[1]))) * tiles.cluster + lax.axis_index("cluster")
                columns = pl.ds(lax.rem(empty, jnp.int32(grid[1])) * tile_n, tile_n)
                zeros = plgpu.layout_cast(jnp.zeros((64, tiles.out_n), jnp.float32), plgpu.Layout.WGMMA)
                write(lambda chunk: zeros, columns, pl.ds(m_tile * TILE_M + wg * 64, 64))

        plgpu.wait_smem_to_gmem(0)


def loop_count(count: Array, tiles: GemmTiles) -> Array:
    """Returns how many of so many tiles this thread block works on."""
    blocks = jnp.int32(tiles.sms // tiles.cluster)
    return lax.div(count, blocks) + (lax.axis_index("sm") < lax.rem(count, blocks)).astype(jnp.int32)
