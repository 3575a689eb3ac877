"""Tile sizes of the Hopper kernels, by what was fastest on an H100 (docs/log.md) and fits a thread block's memory."""

from typing import NamedTuple

import jax
from jax.extend import backend

SHARED_BYTES = 227 * 1024 - 2048
"""Shared memory of a thread block on Hopper, less what barriers and alignment take."""


class GemmTiles(NamedTuple):
    """How `adapter_gemm` cuts its work.

    Attributes:
        tile_n: Columns of an output tile, a multiple of 64 up to 256.
        stages: K steps in flight.
        cluster: Thread blocks, one row tile each, that share the fetch of W: 1 or 2.
        out_n: Columns of a store.
        out_buffers: Stores in flight for each warpgroup.
        minor: Which of (0) rows and (1) columns the order of work runs along.
        width: Tiles it runs before it turns.
        sms: Multiprocessors.
    """

    tile_n: int
    stages: int
    cluster: int
    out_n: int
    out_buffers: int
    minor: int
    width: int
    sms: int


class SumTiles(NamedTuple):
    """How `slot_sums` cuts its work.

    Attributes:
        columns: Columns of X that a thread block sums.
        stages: Row steps in flight.
        sms: Multiprocessors.
    """

    columns: int
    stages: int
    sms: int


def gemm_tiles(m: int, n: int, k: int, rank: int, *, makes_h: bool) -> GemmTiles:
    """Returns the tiles of an [m, k] · [k, n] product."""
    tile_n = next(size for size in (256, 192, 128, 64) if n % size == 0)
    cluster = 2 if m % 256 == 0 and multiprocessors() > 1 else 1
    out_n, out_buffers = (32 if rank > 16 and makes_h else 64), 1
    stage = 2 * 64 * (128 + tile_n + (rank if makes_h else 0))
    fixed = 2 * rank * tile_n + 2 * 2 * 64 * out_n * out_buffers
    stages = min(4 * 256 // tile_n, (SHARED_BYTES - fixed) // stage, max(k // 64, 1))
    return GemmTiles(tile_n, stages, cluster, out_n, out_buffers, 1, 8, multiprocessors())


def sum_tiles(columns: int, h_width: int) -> SumTiles:
    """Returns the tiles of a sum over rows of `columns` columns, with `h_width` columns of all H together."""
    widest = 256 if h_width <= 128 else 128
    block = widest if columns % widest == 0 else 128
    return SumTiles(block, SHARED_BYTES // (2 * 64 * (block + h_width)), multiprocessors())


def segment_tiles(m_tiles: int, blocks: int, sms: int) -> int:
    """Returns the row tiles of a segment such that each multiprocessor gets about one."""
    return max(1, -(-m_tiles * blocks // sms))


def down_stages(rank: int) -> int:
    """Returns the K steps in flight that let two thread blocks of `down_projection` share a multiprocessor."""
    return min(8, SHARED_BYTES // 2 // (2 * 64 * (64 + rank)))


def multiprocessors() -> int:
    """Returns the multiprocessors of the device at hand, or of the one that is traced for."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    return int(described.num_cores if described is not None else backend.get_default_device().core_count)
