"""Tiles that were measured, from the table of the device at hand; the usual ones where it has none that fit.

A table is ``tables/<device kind>.json``, which `scripts/devices/tune_tiles.py` makes. Of the entries with a problem's
own sizes the one with the nearest number of rows counts.
"""

import functools
import importlib.resources
import json
import math
import re
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from typing import Any, Literal, NamedTuple

from pallas_kernels.device import device_kind
from pallas_kernels.mosaic_gpu.tiles import GemmTiles, SumTiles, usual_gemm_tiles, usual_sum_tiles

TABLES = importlib.resources.files("pallas_kernels.mosaic_gpu.tables")
GemmKind = Literal["with_h", "with_h_transposed", "given_h", "given_h_transposed"]
PROBLEMS = {"gemm": ("kind", "k", "n", "rank"), "sums": ("columns", "h_width")}
"""Fields that must be equal for an entry to apply, by the table's part; rows need not be."""
CHOSEN = {"gemm": GemmTiles._fields[:-1], "sums": SumTiles._fields[:-1]}
"""The fields of tiles that are chosen: all but the device's multiprocessors, which come last."""


class MeasuredTiles(NamedTuple):
    """The measurement of one problem.

    Attributes:
        m: Its rows.
        problem: Its other sizes, as `PROBLEMS` orders them.
        tiles: The fields that are chosen, see `CHOSEN`.
        ms: Milliseconds with these tiles.
        usual_ms: The same with the usual ones.
    """

    m: int
    problem: tuple[Any, ...]
    tiles: dict[str, int]
    ms: float
    usual_ms: float


Table = dict[str, tuple[MeasuredTiles, ...]]


def gemm_tiles(m: int, n: int, k: int, rank: int, *, makes_h: bool, transpose_w: bool = False) -> GemmTiles:
    """Returns the tiles of an [m, k] · [k, n] product, W lying transposed or not."""
    usual = usual_gemm_tiles(m, n, k, rank, makes_h=makes_h)
    problem = (gemm_kind(makes_h=makes_h, transpose_w=transpose_w), k, n, rank)
    tiles = usual._replace(**_nearest(table_of(device_kind())["gemm"], problem, m))
    return tiles if tiles.fits(m, n, k, rank, makes_h=makes_h) else usual


def sum_tiles(columns: int, h_width: int, *, m: int) -> SumTiles:
    """Returns the tiles of a sum over m rows of `columns` columns, with `h_width` columns of all H together."""
    usual = usual_sum_tiles(columns, h_width)
    tiles = usual._replace(**_nearest(table_of(device_kind())["sums"], (columns, h_width), m))
    return tiles if tiles.fits(columns, h_width) else usual


def gemm_kind(*, makes_h: bool, transpose_w: bool) -> GemmKind:
    """Returns what the tables call such a product."""
    if transpose_w:
        return "with_h_transposed" if makes_h else "given_h_transposed"
    return "with_h" if makes_h else "given_h"


@functools.cache
def table_of(device: str) -> Table:
    """Returns the table that is shipped for a kind of device, an empty one for an unknown kind.

    Raises:
        ValueError: The file is wrong.
    """
    return read_table(TABLES, device)


def read_table(folder: Traversable, device: str) -> Table:
    """Returns the table of a kind of device from `folder`, an empty one where there is no file.

    Raises:
        ValueError: The file is not such a table, another device's, or says something twice.
    """
    path = folder / file_name(device)
    if not path.is_file():
        return dict.fromkeys(PROBLEMS, ())
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["device"] != device or set(raw) - {"device", *PROBLEMS}:
            raise ValueError(f"holds {', '.join(raw)} of '{raw['device']}'")
        table = {part: tuple(_entry(part, one) for one in raw.get(part, ())) for part in PROBLEMS}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        said = str(error).partition("\n")[0]
        raise ValueError(f"{path}: {said}; expected a table of tiles of '{device}'") from None
    for part, entries in table.items():
        seen = [(one.m, one.problem) for one in entries]
        if twice := [key for at, key in enumerate(seen) if key in seen[:at]]:
            raise ValueError(f"{path}: {part} has m = {twice[0][0]}, {twice[0][1]} twice, expected it once")
    return table


def written(table: Table, device: str) -> str:
    """Returns a table as its file holds it, an entry a line."""
    parts = [f'"device": {json.dumps(device)}']
    for part, entries in table.items():
        flat = [{"m": one.m, **dict(zip(PROBLEMS[part], one.problem, strict=True)), **one._asdict()} for one in entries]
        lines = [json.dumps({key: value for key, value in one.items() if key != "problem"}) for one in flat]
        if lines:
            parts.append(f'"{part}": [\n  ' + ",\n  ".join(lines) + "\n]")
    return "{" + ",\n".join(parts) + "}\n"


def with_entry(table: Table, part: str, entry: MeasuredTiles) -> Table:
    """Returns the table with an entry in place of what it says of the same problem, sorted."""
    last = {(one.problem, one.m): one for one in (*table[part], entry)}
    return {**table, part: tuple(last[key] for key in sorted(last))}


def file_name(device: str) -> str:
    """Returns the name of a device's table."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


def _entry(part: str, raw: dict[str, Any]) -> MeasuredTiles:
    names = PROBLEMS[part]
    if set(raw) != {"m", *names, "tiles", "ms", "usual_ms"} or set(raw["tiles"]) != set(CHOSEN[part]):
        raise ValueError(f"{part} has an entry of other fields: {raw}")
    sizes = [raw[name] for name in ("m", *names) if name != "kind"]
    if not all(type(one) is int and one >= 0 for one in (*sizes, *raw["tiles"].values())) or 0 in sizes:
        raise ValueError(f"{part} has an entry of other numbers than whole ones: {raw}")
    if not all(math.isfinite(ms) and ms > 0 for ms in (raw["ms"], raw["usual_ms"])):
        raise ValueError(f"{part} has an entry without times: {raw}")
    return MeasuredTiles(raw["m"], tuple(raw[name] for name in names), raw["tiles"], raw["ms"], raw["usual_ms"])


def _nearest(entries: Sequence[MeasuredTiles], problem: tuple[Any, ...], m: int) -> dict[str, int]:
    mine = [one for one in entries if one.problem == problem]
    nearest = min(mine, key=lambda one: (abs(math.log(one.m / m)), one.m), default=None)
    return {} if nearest is None else nearest.tiles
