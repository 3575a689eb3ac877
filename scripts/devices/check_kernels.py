"""Checks the adapter kernels of this machine against a float32 reference, gradients included.

    python scripts/devices/check_kernels.py [IMPLEMENTATION ...] [--seed 0] [--cases dropout]

Fresh random inputs for every case, memory filled with NaN before each run, empty slots, slots whose rows lie apart,
ranks from 8 to 128 in one call, rows of padding, with and without dropout. Prints one table of relative errors
(Frobenius norms) and ends with code 1 if one exceeds what bfloat16 operands explain.
"""

from jaxrun.process.script import run_script

import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from full_slots import kernels_here
from jax import Array
from rich.console import Console
from rich.table import Table

from jaxrun.config.script_options import ScriptOptions
from pallas_kernels import Dropout, lora_matmuls
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.dropout import drop

BOUND = 8e-3
"""Largest relative error accepted: H, dH and the outputs are rounded to bfloat16 (2^-9 each), operands are exact."""


class Case(NamedTuple):
    """A problem: `tile_slots` tiles of `tile` tokens, the last `padding` of nothing; a projection for each of `n`."""

    name: str
    tile: int
    tile_slots: tuple[int, ...]
    k: int
    n: tuple[int, ...]
    ranks: tuple[int, ...]
    drops: bool = False
    padding: int = 0


CASES = (
    Case("one slot", 128, (0,) * 16, 1024, (512,), (16,)),
    Case("eight slots", 256, tuple(range(8)), 2048, (2048,), (16,) * 8),
    Case("eight slots, dropout", 256, tuple(range(8)), 2048, (2048,), (16,) * 8, True),
    Case("rows apart, empty slots", 128, (5, 0, 0, 2, 5, 2, 0, 5, 5), 512, (768,), (16,) * 7),
    Case("mixed ranks", 384, (0, 1, 2, 3), 768, (1024,), (8, 128, 16, 64)),
    Case("mixed ranks, dropout", 384, (0, 1, 2, 3), 768, (1024,), (8, 128, 16, 64), True),
    Case("rank 32", 128, (0, 1, 1, 3), 512, (512,), (32,) * 4),
    Case("rank 64", 128, (0, 1, 1, 3), 512, (512,), (64,) * 4, True),
    Case("64 slots", 128, tuple(range(64)), 512, (512,), (8,) * 64),
    Case("uneven columns", 128, (0, 1, 1), 576, (192,), (16, 8)),
    Case("uneven columns, dropout", 128, (0, 1, 1), 576, (1536,), (16, 8), True),
    Case("three projections", 128, (0, 1, 1, 0), 512, (512, 128, 128), (16, 8)),
    Case("three projections, dropout", 128, (0, 1, 1, 0), 512, (512, 128, 128), (16, 8), True),
    Case("two wide projections", 128, (0, 1, 1, 0), 512, (512, 512), (128, 64)),
    Case("padding", 128, (0, 1, 1, 2, 2, 2, 2, 2), 1024, (1024,), (64,) * 4, padding=3),
    Case("padding, dropout", 128, (0, 1, 1, 2, 2, 2, 2, 2), 1024, (1024,), (64,) * 4, True, padding=3),
    Case("padding, three projections", 256, (0, 1, 2, 2, 2), 1024, (512, 128, 128), (16,) * 3, padding=2),
    Case("long k", 128, (1, 0), 8192, (256,), (16, 16)),
)


def main() -> int:
    """Runs every case on every implementation asked for."""
    parser = ScriptOptions(__doc__)
    here = kernels_here()
    parser.add_argument("implementations", nargs="*", default=here)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", default="", help="only those whose name contains this")
    options = parser.read()
    if unknown := [name for name in options.implementations if name not in here]:
        print(
            f"check_kernels: error: '{unknown[0]}' does not run here, expected any of {', '.join(here)}",
            file=sys.stderr,
        )
        return 2
    cases = [case for case in CASES if options.cases in case.name]
    if not cases:
        parser.error(
            f"--cases {options.cases}: no such case, expected part of {', '.join(case.name for case in CASES)}"
        )
    table = Table("case", "implementation", "y", "dx", "da", "db", title=jax.devices()[0].device_kind)
    worst = 0.0
    for case in cases:
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
    """Returns the largest relative error of y, dx, da and db; infinite where a slot without rows has a gradient."""
    arrays, dropout, dys = draw(case, seed)
    slots, live = jnp.asarray(case.tile_slots, jnp.int32), jnp.int32(len(case.tile_slots) - case.padding)
    rows = case.tile * int(live)
    if case.padding and IMPLEMENTATIONS[implementation].skips:
        arrays["x"], *dys = (one.at[rows:].set(jnp.nan) for one in (arrays["x"], *dys))

    both = partial(outputs_and_gradients, implementation, slots, live if case.padding else None)
    poison(4 * sum(array.nbytes for array in jax.tree.leaves(arrays)))
    found = jax.jit(both)(arrays, dropout, dys)
    wanted = reference(case, *draw(case, seed))
    empty = [slot for slot in range(len(case.ranks)) if slot not in case.tile_slots]
    errors = {"y": 0.0, "dx": 0.0, "da": 0.0, "db": 0.0}
    # On the host, where nothing is compiled for a shape.
    found, wanted = (jax.tree.leaves(jax.device_get(one)) for one in (found, wanted))
    for name, one, exact in zip(names(case), found, wanted, strict=True):
        one = one.astype(np.float32)
        if name in ("y", "dx"):
            one, exact = one[:rows], exact[:rows]
        error = float(np.linalg.norm(one - exact) / np.linalg.norm(exact))
        untouched = name in ("y", "dx") or not any(one[slot].any() for slot in empty)
        errors[name] = max(errors[name], error if untouched and np.isfinite(error) else float("inf"))
    return errors


def outputs_and_gradients(
    implementation: str,
    slots: Array,
    live: Array | None,
    arrays: dict[str, Any],
    dropout: Dropout | None,
    dys: list[Array],
) -> tuple[Any, ...]:
    """Returns y of every projection, then the gradients of x and of the adapters."""

    def outputs(x: Array, adapters: list[tuple[Array, Array]]) -> list[Array]:
        kind: dict[str, Any] = {"live": live, "dropout": dropout, "implementation": implementation}
        return list(lora_matmuls(x, arrays["w"], adapters, arrays["scale"], slots, **kind))

    ys, backward = jax.vjp(outputs, arrays["x"], arrays["adapters"])
    return ys, *backward(dys)


def names(case: Case) -> list[str]:
    """Returns what the leaves of outputs and gradients are, in order."""
    return ["y"] * len(case.n) + ["dx"] + ["da", "db"] * len(case.n)


def draw(case: Case, seed: int) -> tuple[dict[str, Any], Dropout | None, list[Array]]:
    """Returns operands, dropout and the cotangents of y; a slot of smaller rank has zeros beyond it."""
    m, slots, rank = case.tile * len(case.tile_slots), len(case.ranks), max(case.ranks)
    random = np.random.default_rng(seed)
    narrow = np.arange(rank)[None, :] < np.asarray(case.ranks)[:, None]

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (random.standard_normal(shape, np.float32) * np.float32(scale)).astype(jnp.bfloat16)

    ws, adapters, dys = [], [], []
    for n in case.n:
        ws.append(normal(case.k, n, scale=case.k**-0.5))
        a = normal(slots, case.k, rank, scale=case.k**-0.5) * narrow[:, None, :]
        b = normal(slots, rank, n) * narrow[:, :, None]
        adapters.append((a.astype(np.float32), b.astype(np.float32)))
        dys.append(normal(m, n))
        dys[-1][m - case.padding * case.tile :] = 0
    x, scale = normal(m, case.k), random.uniform(0.5, 2.0, slots).astype(np.float32)
    dropout = None
    if case.drops:
        rate, keys = np.linspace(0.0, 0.5, slots, dtype=np.float32), random.integers(0, 2**32, m, np.uint32)
        dropout = Dropout(jnp.asarray(rate), jnp.asarray(keys))
    arrays = {"x": x, "w": ws, "adapters": adapters, "scale": scale}
    return jax.tree.map(jnp.asarray, arrays), dropout, [jnp.asarray(dy) for dy in dys]


def reference(case: Case, arrays: dict[str, Any], dropout: Dropout | None, dys: list[Array]) -> tuple[Any, ...]:
    """Returns what `check` compares with, in float32, each row tile by its own dense products."""
    slots = jnp.asarray(case.tile_slots, jnp.int32)

    @jax.jit
    def both(arrays: dict[str, Any], dropout: Dropout | None, dys: list[Array]) -> tuple[Any, ...]:
        def outputs(x: Array, adapters: list[tuple[Array, Array]]) -> list[Array]:
            source = (x if dropout is None else drop(x, dropout, slots)).reshape(len(slots), case.tile, -1)
            ys = []
            for w, (a, b) in zip(arrays["w"], adapters, strict=True):
                h = jnp.matmul(source, a[slots], precision="highest") * arrays["scale"][slots][:, None, None]
                y = jnp.matmul(h, b[slots], precision="highest").reshape(x.shape[0], -1)
                ys.append(jnp.matmul(x, w.astype(jnp.float32), precision="highest") + y)
            return ys

        ys, backward = jax.vjp(outputs, arrays["x"].astype(jnp.float32), arrays["adapters"])
        return ys, *backward([dy.astype(jnp.float32) for dy in dys])

    return both(arrays, dropout, dys)


def poison(size: int) -> None:
    """Leaves NaN in device memory that is free, so that an output nobody wrote shows."""
    jax.block_until_ready(jnp.full((size // 4,), jnp.nan, jnp.float32)).delete()


if __name__ == "__main__":
    sys.exit(run_script(main))
