"""Tiles that were measured, from the table of the device at hand; the usual ones where it has none that fit.

A table is ``tables/<device kind>.json``, which `scripts/tune_tiles.py` makes. Of the entries with a problem's own sizes
the one with the nearest number of rows counts.
"""

import functools
import importlib.resources
import json
import math
import re
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from harness.config import StrictModel, check_config
from harness.errors import UserError
from harness.files import write_atomic
from pallas_kernels.device import device_kind
from pallas_kernels.mosaic_gpu.tiles import GemmTiles, SumTiles, usual_gemm_tiles, usual_sum_tiles

TABLES = importlib.resources.files("pallas_kernels.mosaic_gpu.tables")
GemmKind = Literal["with_h", "with_h_transposed", "given_h", "given_h_transposed"]
Size = Annotated[int, Field(ge=1)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class GemmChoice(StrictModel):
    """The fields of `GemmTiles` that are chosen, and not the device's."""

    tile_n: Literal[64, 128, 192, 256]
    stages: Size
    cluster: Literal[1, 2]
    out_n: Literal[32, 64, 128, 256]
    out_buffers: Size
    minor: Literal[0, 1]
    width: Size


class GemmEntry(StrictModel):
    """The tiles of an [m, k] · [k, n] product of `adapter_gemm`, with their time and that of the usual tiles."""

    kind: GemmKind
    m: Size
    k: Size
    n: Size
    rank: Size
    tiles: GemmChoice
    ms: Milliseconds
    usual_ms: Milliseconds

    @property
    def problem(self) -> tuple[str, int, int, int]:
        """All that must be equal, which is not the rows."""
        return self.kind, self.k, self.n, self.rank


class SumChoice(StrictModel):
    """The fields of `SumTiles` that are chosen, and not the device's."""

    columns: Literal[128, 256]
    stages: Size


class SumEntry(StrictModel):
    """The tiles of `slot_sums` over m rows of X with so many columns, H being `h_width` wide in all."""

    m: Size
    columns: Size
    h_width: Size
    tiles: SumChoice
    ms: Milliseconds
    usual_ms: Milliseconds

    @property
    def problem(self) -> tuple[int, int]:
        """All that must be equal, which is not the rows."""
        return self.columns, self.h_width


class TileTable(StrictModel):
    """What was measured on one kind of device."""

    device: str
    gemm: tuple[GemmEntry, ...] = ()
    sums: tuple[SumEntry, ...] = ()


def gemm_tiles(m: int, n: int, k: int, rank: int, *, makes_h: bool, transpose_w: bool = False) -> GemmTiles:
    """Returns the tiles of an [m, k] · [k, n] product, W lying transposed or not."""
    usual = usual_gemm_tiles(m, n, k, rank, makes_h=makes_h)
    problem = (gemm_kind(makes_h=makes_h, transpose_w=transpose_w), k, n, rank)
    entry = _nearest([one for one in table_of(device_kind()).gemm if one.problem == problem], m)
    tiles = usual if entry is None else usual._replace(**entry.tiles.model_dump())
    return tiles if tiles.fits(m, n, k, rank, makes_h=makes_h) else usual


def sum_tiles(columns: int, h_width: int, *, m: int) -> SumTiles:
    """Returns the tiles of a sum over m rows of `columns` columns, with `h_width` columns of all H together."""
    usual = usual_sum_tiles(columns, h_width)
    entry = _nearest([one for one in table_of(device_kind()).sums if one.problem == (columns, h_width)], m)
    tiles = usual if entry is None else usual._replace(**entry.tiles.model_dump())
    return tiles if tiles.fits(columns, h_width) else usual


def gemm_kind(*, makes_h: bool, transpose_w: bool) -> GemmKind:
    """Returns what the tables call such a product."""
    if transpose_w:
        return "with_h_transposed" if makes_h else "given_h_transposed"
    return "with_h" if makes_h else "given_h"


@functools.cache
def table_of(device: str) -> TileTable:
    """Returns the table that is shipped for a kind of device, an empty one for an unknown kind.

    Raises:
        UserError: The file is wrong.
    """
    return read_table(TABLES, device)


def read_table(folder: Traversable, device: str) -> TileTable:
    """Returns the table of a kind of device from `folder`, an empty one where there is no file.

    Raises:
        UserError: The file cannot be read, is not valid JSON or not such a table, is another device's, or says
            something twice.
    """
    path = folder / file_name(device)
    if not path.is_file():
        return TileTable(device=device)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}), expected a table of tiles") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds a {type(raw).__name__}, expected an object with device, gemm and sums")
    table = check_config(TileTable, raw, str(path))
    if table.device != device:
        raise UserError(f"{path}: device is '{table.device}', expected '{device}'")
    for name, entries in (("gemm", table.gemm), ("sums", table.sums)):
        keys = [(one.m, *one.problem) for one in entries]
        for at, key in enumerate(keys):
            if keys.index(key) < at:
                raise UserError(f"{path}: {name}.{at}: the problem of {name}.{keys.index(key)} again, expected it once")
    return table


def record(folder: Path, device: str, entry: GemmEntry | SumEntry) -> Path:
    """Writes an entry into the table of `folder`, in place of what that says of the same problem, and keeps the others.

    Returns:
        The table's path.

    Raises:
        UserError: The table that is there is wrong, or cannot be written.
    """
    table, path = read_table(folder, device), folder / file_name(device)
    gemm = _merged(table.gemm, [entry] if isinstance(entry, GemmEntry) else [])
    sums = _merged(table.sums, [entry] if isinstance(entry, SumEntry) else [])
    parts = {name: [one.model_dump_json() for one in entries] for name, entries in (("gemm", gemm), ("sums", sums))}
    lists = [f'"{name}": [\n  ' + ",\n  ".join(lines) + "\n]" for name, lines in parts.items() if lines]
    write_atomic(path, "{" + ",\n".join([f'"device": {json.dumps(device)}', *lists]) + "}\n")
    return path


def file_name(device: str) -> str:
    """Returns the name of a device's table."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


def _nearest[Entry: GemmEntry | SumEntry](entries: Sequence[Entry], m: int) -> Entry | None:
    return min(entries, key=lambda one: (abs(math.log(one.m / m)), one.m), default=None)


def _merged[Entry: GemmEntry | SumEntry](old: Sequence[Entry], new: Sequence[Entry]) -> list[Entry]:
    last = {(one.problem, one.m): one for one in [*old, *new]}
    return [last[key] for key in sorted(last)]
