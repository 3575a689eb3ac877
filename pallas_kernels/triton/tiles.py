"""Tile sizes of the Triton kernels, and what these refuse; knows nothing of Triton, which may be missing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.products import RANKS

ROW_TILES = (128, 64, 32, 16)
LARGE_SHARED_MEMORY = ("8.0", "9.0", "10.0")
"""Compute capabilities whose thread blocks have 160 KiB and more; others have 99."""


class TritonGemmTiles(NamedTuple):
    """Tile sizes of `adapter_gemm`.

    Attributes:
        tile_n: Columns of an output tile.
        tile_k: Depth of a step.
        warps: Warps of a thread block.
        stages: Steps in flight.
    """

    tile_n: int
    tile_k: int
    warps: int
    stages: int


def gemm_tiles(tile_m: int, *, drops: bool) -> TritonGemmTiles:
    """Returns the tiles for row tiles of `tile_m`; with dropout a second accumulator needs the registers."""
    if tile_m < ROW_TILES[0]:
        return TritonGemmTiles(128, 32, 4, 4)
    if capability() not in LARGE_SHARED_MEMORY:
        return TritonGemmTiles(128, 32, 8 if drops else 4, 4)
    return TritonGemmTiles(128, 64, 8, 4) if drops else TritonGemmTiles(256, 64, 8, 3)


def row_tile(tokens: int) -> int:
    """Returns the most rows of a tile that divide a run of tokens of one slot."""
    return next(size for size in ROW_TILES if tokens % size == 0)


def refusals(
    x: Float[Array, "tokens k"], w: Float[Array, "k n"], a: Float[Array, "slots k rank"], tiles: int
) -> list[str]:
    """Returns why the kernels do not take these operands, nothing if they do."""
    reasons = []
    m, rank = x.shape[0], a.shape[2]
    if x.dtype != jnp.bfloat16:
        reasons.append(f"x is {x.dtype}, expected bfloat16")
    if m % tiles or (m // tiles) % ROW_TILES[-1]:
        reasons.append(f"{m // tiles} tokens a tile, expected a multiple of {ROW_TILES[-1]}")
    if rank > RANKS[-1]:
        reasons.append(f"rank {rank}, expected at most {RANKS[-1]}")
    return reasons


def capability() -> str:
    """Returns the compute capability of the GPU at hand."""
    return str(getattr(jax.local_devices()[0], "compute_capability", "unknown"))
