"""Tile sizes of the Hopper kernels: which ones fit a problem, and the usual ones, where `tile_table` has none.

The usual ones are what was fastest on an H100 (docs/measured/log.md) and fits a thread block's memory.
"""

from typing import NamedTuple

from pallas_kernels import device

SHARED_BYTES = 227 * 1024 - 2048
"""Shared memory of a thread block on Hopper, less what barriers and alignment take."""
SUMS_IN_REGISTERS = 128 * 384
"""Most sums, float32, that a thread block of `slot_sums` holds: 192 registers of each thread that adds."""


class GemmTiles(NamedTuple):
    """Tile sizes of `adapter_gemm`.

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

    def most_stages(self, k: int, rank: int, *, makes_h: bool) -> int:
        """Returns the K steps in flight that shared memory holds, at most all of them."""
        stage = 2 * 64 * (128 + self.tile_n + (rank if makes_h else 0))
        fixed = 2 * rank * self.tile_n + 2 * 2 * 64 * self.out_n * self.out_buffers
        return min((SHARED_BYTES - fixed) // stage, max(k // 64, 1))

    def fits(self, m: int, n: int, k: int, rank: int, *, makes_h: bool) -> bool:
        """Whether an [m, k] · [k, n] product can be cut so, with dropout too where H is given."""
        most = self.most_stages(k, rank, makes_h=makes_h)
        return (
            self.tile_n in (64, 128, 192, 256)
            and n % self.tile_n == 0
            and self.out_n in (32, 64, 128, 256)
            and self.tile_n % self.out_n == 0
            and (makes_h or self.out_n % min(rank, 64) == 0)
            and self.out_buffers >= 1
            and self.cluster in (1, 2)
            and self.cluster <= self.sms
            and m % (128 * self.cluster) == 0
            and min(2, max(k // 64, 1)) <= self.stages <= most
            and self.minor in (0, 1)
            and self.width >= 1
        )


class SumTiles(NamedTuple):
    """Tile sizes of `slot_sums`.

    Attributes:
        columns: Columns of X that a thread block sums.
        stages: Row steps in flight.
        sms: Multiprocessors.
    """

    columns: int
    stages: int
    sms: int

    def most_stages(self, h_width: int) -> int:
        """Returns the row steps in flight that shared memory holds."""
        return SHARED_BYTES // (2 * 64 * (self.columns + h_width))

    def fits(self, columns: int, h_width: int) -> bool:
        """Whether a sum over rows of `columns` columns can be cut so, H being `h_width` wide in all."""
        return (
            self.columns in (128, 256)
            and columns % (self.columns // 2) == 0
            and self.columns * h_width <= SUMS_IN_REGISTERS
            and 2 <= self.stages <= self.most_stages(h_width)
        )


def usual_gemm_tiles(m: int, n: int, k: int, rank: int, *, makes_h: bool) -> GemmTiles:
    """Returns the tiles of an [m, k] · [k, n] product that nobody measured."""
    tile_n = next(size for size in (256, 192, 128, 64) if n % size == 0)
    cluster = 2 if m % 256 == 0 and device.multiprocessors() > 1 else 1
    out_n = 32 if rank > 16 and makes_h else 64
    tiles = GemmTiles(tile_n, 4 * 256 // tile_n, cluster, out_n, 1, 1, 8, device.multiprocessors())
    return tiles._replace(stages=min(tiles.stages, tiles.most_stages(k, rank, makes_h=makes_h)))


def usual_sum_tiles(columns: int, h_width: int) -> SumTiles:
    """Returns the tiles of a sum over rows of `columns` columns, H being `h_width` wide in all, likewise."""
    widest = 256 if h_width <= 128 else 128
    tiles = SumTiles(widest if columns % widest == 0 else 128, 2, device.multiprocessors())
    return tiles._replace(stages=tiles.most_stages(h_width))


def down_stages(rank: int) -> int:
    """Returns the K steps in flight that let two thread blocks of `down_projection` share a multiprocessor."""
    return min(8, SHARED_BYTES // 2 // (2 * 64 * (64 + rank)))
