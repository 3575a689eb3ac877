"""Tuning problems of the Hopper kernels: candidate tiles, and a way to run each kernel alone."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from pallas_kernels.dropout import Dropout
from pallas_kernels.mosaic_gpu.blocks import TILE_M, h_width
from pallas_kernels.mosaic_gpu.gemm import adapter_gemm
from pallas_kernels.mosaic_gpu.slot_sums import slot_sums
from pallas_kernels.mosaic_gpu.tile_table import CHOSEN, GemmKind, MeasuredTiles
from pallas_kernels.mosaic_gpu.tiles import GemmTiles, SumTiles, usual_gemm_tiles, usual_sum_tiles
from pallas_kernels.segments import cut, segment_tiles


class GemmProblem(NamedTuple):
    """An `adapter_gemm`, [m, k] · [k, n]; a transposed one that is given H drops features, as in gradients."""

    kind: GemmKind
    m: int
    k: int
    n: int
    rank: int

    def __str__(self) -> str:
        return f"{self.kind} {self.m}x{self.k}x{self.n} rank {self.rank}"

    @property
    def key(self) -> tuple[int, tuple[Any, ...]]:
        """Its rows, and the sizes that must be equal in a table."""
        return self.m, (self.kind, self.k, self.n, self.rank)

    @property
    def makes_h(self) -> bool:
        """Whether H is made on the way."""
        return self.kind.startswith("with_h")

    @property
    def transpose_w(self) -> bool:
        """Whether W lies transposed."""
        return self.kind.endswith("_transposed")

    def candidates(self) -> list[GemmTiles]:
        """Returns the usual tiles, and those of one or two changes that fit, most promising first."""
        usual = usual_gemm_tiles(self.m, self.n, self.k, self.rank, makes_h=self.makes_h)
        changes: tuple[dict[str, int], ...] = (
            {"tile_n": 128},
            {"cluster": 3 - usual.cluster},
            {"out_n": 32, "out_buffers": 2},
            {"width": 16},
            {"width": 4},
            {"minor": 0},
            {"tile_n": 192},
            {"out_n": 96 - usual.out_n},
            {"out_n": 64, "out_buffers": 2},
            {"stages": usual.stages - 1},
            {"tile_n": 128, "cluster": 3 - usual.cluster},
            {"tile_n": 128, "out_n": 64, "out_buffers": 2},
            {"width": 1},
            {"tile_n": 64},
        )
        found = [usual]
        for change in changes:
            tiles = usual._replace(**change)
            most = min(1024 // tiles.tile_n, tiles.most_stages(self.k, self.rank, makes_h=self.makes_h))
            found.append(tiles if "stages" in change else tiles._replace(stages=most))
        fitting = (one for one in found if one.fits(self.m, self.n, self.k, self.rank, makes_h=self.makes_h))
        return list(dict.fromkeys(fitting))

    def kernel(self, tiles: Any, slots: int) -> Callable[..., list[Array]]:
        """Returns the kernel as a function of `operands`."""
        del slots
        written = 2 if self.makes_h else 1
        return lambda *operands: list(adapter_gemm(*operands, transpose_w=self.transpose_w, tiles=tiles)[:written])

    def operands(self, slots: int, like: Callable[..., Any]) -> tuple[Any, ...]:
        """Returns its operands, every array of which `like` makes of a shape and a type."""
        half = jnp.bfloat16
        drops = self.kind == "given_h_transposed"
        return (
            like((self.m, self.k), half),
            like((self.n, self.k) if self.transpose_w else (self.k, self.n), half),
            like((slots, self.rank, self.k), half) if self.makes_h else None,
            like((slots, self.rank, self.n), half),
            like((slots,), jnp.float32) if self.makes_h else None,
            like((self.m // TILE_M,), jnp.int32),
            None if self.makes_h else like((self.m, h_width(self.rank)), half),
            Dropout(like((slots,), jnp.float32), like((self.m,), jnp.uint32)) if drops else None,
        )

    def results(self, outputs: Sequence[Array]) -> list[Array]:
        """Returns what is always written of the outputs."""
        y, *h = outputs
        return [y, *(one[:, : self.rank] for one in h)]


class SumProblem(NamedTuple):
    """A `slot_sums`, of X [m, columns] and H of `together` projections of one rank."""

    m: int
    columns: int
    together: int
    rank: int

    def __str__(self) -> str:
        return f"sums {self.m}x{self.columns} with {self.together} H of rank {self.rank}"

    @property
    def key(self) -> tuple[int, tuple[Any, ...]]:
        """Its rows, and the sizes that must be equal in a table."""
        return self.m, (self.columns, self.h_width)

    @property
    def h_width(self) -> int:
        """Columns of all H."""
        return self.together * h_width(self.rank)

    def candidates(self) -> list[SumTiles]:
        """Returns the usual tiles, and others that fit, most promising first."""
        usual = usual_sum_tiles(self.columns, self.h_width)
        found = []
        for share, columns in itertools.product((1.0, 0.75, 0.5), (usual.columns, 384 - usual.columns)):
            tiles = usual._replace(columns=columns)
            found.append(tiles._replace(stages=round(share * tiles.most_stages(self.h_width))))
        return list(dict.fromkeys([usual, *(one for one in found if one.fits(self.columns, self.h_width))]))

    def kernel(self, tiles: Any, slots: int) -> Callable[..., list[Array]]:
        """Returns the kernel as a function of `operands`."""
        chunk = segment_tiles(self.m // TILE_M, -(-self.columns // tiles.columns), tiles.sms)
        return lambda x, hs, rows: slot_sums(x, hs, cut(rows, slots, chunk), rank=self.rank, tiles=tiles)

    def operands(self, slots: int, like: Callable[..., Any]) -> tuple[Any, ...]:
        """Returns its operands, every array of which `like` makes of a shape and a type."""
        del slots
        hs = [like((self.m, h_width(self.rank)), jnp.bfloat16) for _ in range(self.together)]
        return like((self.m, self.columns), jnp.bfloat16), hs, like((self.m // TILE_M,), jnp.int32)

    def results(self, outputs: Sequence[Array]) -> list[Array]:
        """Returns what is always written of the outputs."""
        return list(outputs)


Problem = GemmProblem | SumProblem


def entry(problem: Problem, tiles: Any, ms: float, usual_ms: float) -> tuple[str, MeasuredTiles]:
    """Returns what a table is to say of a problem, and in which part."""
    part = "gemm" if isinstance(problem, GemmProblem) else "sums"
    chosen = {name: getattr(tiles, name) for name in CHOSEN[part]}
    return part, MeasuredTiles(*problem.key, chosen, ms, usual_ms)
