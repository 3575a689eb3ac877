"""Checks the adapter kernels of this machine against a float32 reference, gradients included.

    python scripts/check_kernels.py [IMPLEMENTATION ...] [--seed 0]

Fresh random inputs for every case, memory filled with NaN before each run, empty slots, slots whose rows lie apart,
ranks from 8 to 128 in one call, with and without dropout. Prints one table of relative errors (Frobenius norms) and
ends with code 1 if one exceeds what bfloat16 operands explain.
"""

import argparse
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.console import Console
from rich.table import Table

from pallas_kernels import Dropout, lora_matmul
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.dropout import drop

BOUND = 8e-3
"""Largest relative error accepted: H, dH and the outputs are rounded to bfloat16 (2^-9 each), operands are exact."""


class Case(NamedTuple):
    """A problem: `tile_slots` tiles of `tile` tokens."""

    name: str
    tile: int
    tile_slots: tuple[int, ...]
    k: int
    n: int
    ranks: tuple[int, ...]
    drops: bool = False


CASES = (
    Case("one slot", 128, (0,) * 16, 1024, 512, (16,)),
    Case("eight slots", 256, tuple(range(8)), 2048, 2048, (16,) * 8),
    Case("eight slots, dropout", 256, tuple(range(8)), 2048, 2048, (16,) * 8, True),
    Case("rows apart, empty slots", 128, (5, 0, 0, 2, 5, 2, 0, 5, 5), 512, 768, (16,) * 7),
    Case("mixed ranks", 384, (0, 1, 2, 3), 768, 1024, (8, 128, 16, 64)),
    Case("mixed ranks, dropout", 384, (0, 1, 2, 3), 768, 1024, (8, 128, 16, 64), True),
    Case("rank 32", 128, (0, 1, 1, 3), 512, 512, (32,) * 4),
    Case("rank 64", 128, (0, 1, 1, 3), 512, 512, (64,) * 4, True),
    Case("64 slots", 128, tuple(range(64)), 512, 512, (8,) * 64),
    Case("uneven columns", 128, (0, 1, 1), 576, 192, (16, 8)),
    Case("uneven columns, dropout", 128, (0, 1, 1), 576, 1536, (16, 8), True),
    Case("long k", 128, (1, 0), 8192, 256, (16, 16)),
)


def main() -> int:
    """Runs every case on every implementation asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = [name for name, one in IMPLEMENTATIONS.items() if not one.device()]
    parser.add_argument("implementations", nargs="*", default=here)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := [name for name in options.implementations if name not in here]:
        print(
            f"check_kernels: error: '{unknown[0]}' does not run here, expected any of {', '.join(here)}",
            file=sys.stderr,
        )
        return 2
    table = Table("case", "implementation", "y", "dx", "da", "db", title=jax.devices()[0].device_kind)
    worst = 0.0
    for case in CASES:
        for name in options.implementations:
            errors = check(case, name, options.seed)
            worst = max(worst, *errors.values())
            cells = (case.name, name, *(f"{error:.1e}" for error in errors.values()))
            table.add_row(*cells)
            print(*cells, file=sys.stderr, flush=True)
    Console(width=100).print(table)
    if worst > BOUND:
        print(f"check_kernels: an error of {worst:.1e} exceeds {BOUND:.0e}", file=sys.stderr)
    return int(worst > BOUND)


def check(case: Case, implementation: str, seed: int) -> dict[str, float]:
    """Returns the relative error of y, dx, da and db; infinite where a slot without rows has a gradient."""
    arrays, dropout, dy = draw(case, seed)
    slots = jnp.asarray(case.tile_slots, jnp.int32)

    def both(arrays: dict[str, Array], dropout: Dropout | None, dy: Array) -> tuple[Array, ...]:
        def outputs(x: Array, a: Array, b: Array) -> Array:
            w, scale = arrays["w"], arrays["scale"]
            return lora_matmul(x, w, a, b, scale, slots, dropout=dropout, implementation=implementation)

        y, backward = jax.vjp(outputs, arrays["x"], arrays["a"], arrays["b"])
        return y, *backward(dy)

    poison(4 * sum(array.nbytes for array in arrays.values()))
    found = jax.jit(both)(arrays, dropout, dy)
    wanted = reference(case, arrays, dropout, dy)
    errors = {}
    for name, one, exact in zip(("y", "dx", "da", "db"), found, wanted, strict=True):
        one = one.astype(jnp.float32)
        error = float(jnp.linalg.norm((one - exact).ravel()) / jnp.linalg.norm(exact.ravel()))
        empty = [slot for slot in range(len(case.ranks)) if slot not in case.tile_slots]
        untouched = name in ("y", "dx") or not any(bool(one[slot].any()) for slot in empty)
        errors[name] = error if untouched and np.isfinite(error) else float("inf")
    return errors


def draw(case: Case, seed: int) -> tuple[dict[str, Array], Dropout | None, Array]:
    """Returns operands, dropout and the cotangent of y; a slot of smaller rank has zeros beyond it."""
    m, slots, rank = case.tile * len(case.tile_slots), len(case.ranks), max(case.ranks)
    keys = jax.random.split(jax.random.key(seed), 8)
    narrow = jnp.arange(rank)[None, :] < jnp.asarray(case.ranks)[:, None]
    a = jax.random.normal(keys[2], (slots, case.k, rank), jnp.float32) * np.float32(case.k**-0.5)
    b = jax.random.normal(keys[3], (slots, rank, case.n), jnp.float32)
    arrays = {
        "x": jax.random.normal(keys[0], (m, case.k), jnp.bfloat16),
        "w": jax.random.normal(keys[1], (case.k, case.n), jnp.bfloat16) * jnp.bfloat16(case.k**-0.5),
        "a": jnp.where(narrow[:, None, :], a, 0.0).astype(jnp.bfloat16).astype(jnp.float32),
        "b": jnp.where(narrow[:, :, None], b, 0.0).astype(jnp.bfloat16).astype(jnp.float32),
        "scale": jax.random.uniform(keys[4], (slots,), jnp.float32, 0.5, 2.0),
    }
    dropout = None
    if case.drops:
        rate = jnp.linspace(0.0, 0.5, slots, dtype=jnp.float32)
        dropout = Dropout(rate, jax.random.bits(keys[5], (m,), jnp.uint32))
    return arrays, dropout, jax.random.normal(keys[6], (m, case.n), jnp.bfloat16)


def reference(case: Case, arrays: dict[str, Array], dropout: Dropout | None, dy: Array) -> tuple[Array, ...]:
    """Returns y, dx, da and db in float32, each row tile by its own dense products."""
    slots = jnp.asarray(case.tile_slots, jnp.int32)

    @jax.jit
    def both(arrays: dict[str, Array], dropout: Dropout | None, dy: Array) -> tuple[Array, ...]:
        def outputs(x: Array, a: Array, b: Array) -> Array:
            source = x if dropout is None else drop(x, dropout, slots)
            h = jnp.matmul(source.reshape(len(slots), case.tile, -1), a[slots], precision="highest")
            y = jnp.matmul(h * arrays["scale"][slots][:, None, None], b[slots], precision="highest")
            return jnp.matmul(x, arrays["w"].astype(jnp.float32), precision="highest") + y.reshape(dy.shape)

        y, backward = jax.vjp(outputs, arrays["x"].astype(jnp.float32), arrays["a"], arrays["b"])
        return y, *backward(dy.astype(jnp.float32))

    return both(arrays, dropout, dy)


def poison(size: int) -> None:
    """Leaves NaN in device memory that is free, so that an output nobody wrote shows."""
    jax.block_until_ready(jnp.full((size // 4,), jnp.nan, jnp.float32)).delete()


if __name__ == "__main__":
    sys.exit(main())
