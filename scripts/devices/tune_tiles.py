"""Finds the fastest tiles of the Hopper kernels on the GPU at hand and writes them into its table.

    python scripts/devices/tune_tiles.py [--shapes 16384x2048x2048,...] [--ranks 16]
        [--kinds with_h,sums] [--seconds 540]

A shape is tokens x k x n of a projection; the problems of its gradients follow from it. For every problem the usual
tiles and others that fit are timed in turns, each on `--copies` sets of random operands in one compiled function, with
a call always in flight; the median of `--repeats` rounds counts. A candidate whose result is not that of the usual
tiles is left out with a line that says so. The usual tiles win unless another is 2 % faster. The winner is written at
once, beside what the table has: a second call resumes where the first stopped, and `--again` measures everything anew.
Compiling a candidate takes 5 to 7 s; `--jobs 12` measures about six problems a minute.
"""

from jaxrun.process.script import run_script

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrun.config.script_options import ScriptOptions
from jaxrun.files.atomic import check_writable, write_atomic
from jaxrun.process.errors import UserError, nearest
from jaxrun.terminal.timing import seconds_in_flight
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.device import device_kind
from pallas_kernels.mosaic_gpu.blocks import TILE_K, TILE_M
from pallas_kernels.mosaic_gpu.tile_problems import GemmProblem, Problem, SumProblem, entry
from pallas_kernels.mosaic_gpu.tile_table import TABLES, GemmKind, file_name, read_table, with_entry, written
from pallas_kernels.products import RANKS

BENCHED = "16384x2048x2048,16384x2048x8192,16384x8192x2048,8192x4096x14336"
OTHERS_OF_LLAMA = "16384x2048x512,8192x4096x4096,8192x4096x1024,8192x14336x4096"
KINDS = (*get_args(GemmKind), "sums")
GAIN = 0.98
"""Share of the usual tiles' time that another candidate must get below to win."""
BOUND = 2.0**-8
"""Largest relative difference of two results: sums may differ in order, and are rounded to bfloat16."""

Shape = tuple[int, int, int]


class OutOfTime(Exception):
    """`--seconds` have passed."""


def main() -> int:
    """Measures the problems that were asked for; returns 1 where one could not be."""
    options = parse()
    if reasons := IMPLEMENTATIONS["mosaic_gpu"].device():
        raise UserError("; ".join(reasons))
    try:
        return tune(options)
    except KeyboardInterrupt:
        print("tune_tiles: stopped; the same command resumes", file=sys.stderr)
        return 130


def tune(options: argparse.Namespace) -> int:
    """Measures every problem that the table does not have, prints what it finds and writes each winner."""
    began, device = time.monotonic(), device_kind()
    check_writable(options.folder)
    try:
        table = read_table(options.folder, device)
    except ValueError as error:
        raise UserError(str(error)) from None
    known = {(one.m, one.problem) for entries in table.values() for one in entries}
    wanted: dict[tuple[Any, ...], Problem] = {}
    for problem in problems(options):
        wanted.setdefault(problem.key, problem)
    left = [problem for key, problem in wanted.items() if options.again or key not in known]
    path = options.folder / file_name(device)
    print(f"{device}, jax {jax.__version__}: {len(left)} of {len(wanted)} problems to measure, for {path}", flush=True)
    longest, failed = 0.0, 0
    for at, problem in enumerate(left):
        start = time.monotonic()
        try:
            if start + longest > began + options.seconds:
                raise OutOfTime
            times = measure(problem, options, began + options.seconds)
        except OutOfTime:
            print(f"time is up, {len(left) - at} problems left; the same command resumes", flush=True)
            break
        longest = max(longest, time.monotonic() - start)
        if times:
            best = winner(times)
            show(problem, times, best)
            usual_ms = next(iter(times.values()))
            table = with_entry(table, *entry(problem, best, round(times[best], 5), round(usual_ms, 5)))
            write_atomic(path, written(table, device))
        else:
            failed += 1
    return int(failed > 0)


def problems(options: argparse.Namespace) -> Iterator[Problem]:
    """Yields what the products of all shapes, and their gradients, consist of."""
    for kind, (m, k, n), rank in itertools.product(options.kinds, options.shapes, options.ranks):
        if kind == "sums":
            yield from (SumProblem(m, k, together, rank) for together in options.together)
            yield SumProblem(m, n, 1, rank)
        else:
            ends = (n, k) if kind.endswith("_transposed") else (k, n)
            yield GemmProblem(kind, m, *ends, rank)


def measure(problem: Problem, options: argparse.Namespace, deadline: float) -> dict[Any, float]:
    """Returns the milliseconds of the usual tiles and then of every candidate; nothing where the usual tiles fail.

    Raises:
        OutOfTime: The deadline came before the last candidate was compiled.
    """
    sets = [problem.operands(options.slots, drawing(options.slots, seed)) for seed in range(options.copies)]
    steps: dict[Any, Callable[..., Any]] = {}
    wanted: list[Array] = []
    pool = ThreadPoolExecutor(options.jobs)
    try:
        compiling = {
            tiles: compiled_in(pool, problem, tiles, sets, options.slots)
            for tiles in problem.candidates()[: options.candidates]
        }
        for tiles, one in compiling.items():
            if time.monotonic() > deadline:
                raise OutOfTime
            try:
                step = one.result()
                wanted = checked(problem, step(sets), wanted)
            except Exception as error:
                print(f"{problem}: {described(tiles)}: {str(error).partition(chr(10))[0]}", file=sys.stderr, flush=True)
                if not steps:
                    return {}
            else:
                steps[tiles] = step
    finally:
        pool.shutdown(cancel_futures=True)
    return race(steps, sets, options.repeats)


def compiled_in(
    pool: ThreadPoolExecutor, problem: Problem, tiles: Any, sets: list[tuple[Any, ...]], slots: int
) -> Future[Any]:
    """Returns the kernel on every set of operands, lowered here and compiled in the pool."""
    kernel = jax.jit(problem.kernel(tiles, slots))
    try:
        return pool.submit(jax.jit(lambda sets: [kernel(*one) for one in sets]).lower(sets).compile)
    except Exception as error:
        failed: Future[Any] = Future()
        failed.set_exception(error)
        return failed


def checked(problem: Problem, outputs: list[list[Array]], wanted: list[Array]) -> list[Array]:
    """Returns what results must be, which is the first set's where nothing is known yet.

    It leaves NaN where the next outputs will probably be, so that what a candidate does not write shows.

    Raises:
        ValueError: They are something else.
    """
    found = problem.results(outputs[0])
    wanted = wanted or found
    error = difference(found, wanted)
    kept = {id(one) for one in wanted}
    shapes = [(one.shape, one.dtype) for one in jax.tree.leaves(outputs)]
    for one in jax.tree.leaves(outputs):
        if id(one) not in kept:
            one.delete()
    for one in jax.block_until_ready([jnp.full(size, jnp.nan, dtype) for size, dtype in shapes]):
        one.delete()
    if error > BOUND:
        raise ValueError(f"differs from the usual tiles' result by {error:.1e}, expected at most {BOUND:.1e}")
    return wanted


def drawing(slots: int, seed: int) -> Callable[..., Array]:
    """Returns what makes an operand of its shape and type: int32 is the slots of row tiles, float32 a rate or scale."""
    keys = iter(jax.random.split(jax.random.key(seed), 16))

    def like(shape: tuple[int, ...], dtype: Any) -> Array:
        if dtype == jnp.int32:
            return jnp.asarray(np.arange(shape[0]) * slots // shape[0], jnp.int32)
        if dtype == jnp.float32:
            return jnp.full(shape, 0.25, jnp.float32)
        key = next(keys)
        return jax.random.bits(key, shape, dtype) if dtype == jnp.uint32 else jax.random.normal(key, shape, dtype)

    return like


def difference(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """Returns the largest relative difference of two results (Frobenius norms), infinite where one is not finite."""

    @jax.jit
    def of(one: Array, other: Array) -> Array:
        one, other = one.astype(jnp.float32), other.astype(jnp.float32)
        return jnp.linalg.norm((one - other).ravel()) / jnp.linalg.norm(other.ravel())

    errors = [float(of(one, other)) for one, other in zip(found, wanted, strict=True)]
    return max(errors) if np.isfinite(errors).all() else math.inf


def race(steps: Mapping[Any, Callable[..., Any]], sets: Any, repeats: int) -> dict[Any, float]:
    """Returns the median milliseconds of a kernel of every step; they take turns, with a call always in flight."""
    times: dict[Any, list[float]] = {tiles: [] for tiles in steps}
    for _ in range(repeats):
        for tiles, step in steps.items():
            seconds = seconds_in_flight(lambda step=step: step(sets), jax.block_until_ready)
            times[tiles].append(seconds / len(sets))
    return {tiles: float(np.median(one)) * 1e3 for tiles, one in times.items()}


def winner(times: Mapping[Any, float]) -> Any:
    """Returns the fastest tiles, or the usual ones, which come first, where nothing is much faster."""
    usual, best = next(iter(times)), min(times, key=lambda tiles: times[tiles])
    return best if times[best] < GAIN * times[usual] else usual


def show(problem: Problem, times: Mapping[Any, float], best: Any) -> None:
    """Prints every candidate's line."""
    print(problem)
    usual_ms = next(iter(times.values()))
    for tiles, ms in times.items():
        print(f"  {described(tiles):<78}{ms:9.4f} ms {ms / usual_ms:7.3f}{' <-' if tiles == best else ''}", flush=True)


def described(tiles: Any) -> str:
    """Returns tiles as a line shows them."""
    return ", ".join(f"{name} {value}" for name, value in tiles._asdict().items() if name != "sms")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options.

    Raises:
        UserError: A flag is wrong.
    """
    parser = ScriptOptions(__doc__)
    parser.add_argument("--shapes", type=listed(shape), default=f"{BENCHED},{OTHERS_OF_LLAMA}")
    parser.add_argument("--ranks", type=listed(rank), default="16")
    parser.add_argument("--kinds", type=listed(kind), default=",".join(KINDS))
    parser.add_argument("--together", type=listed(positive), default="1,2,3", help="projections that share a sum")
    parser.add_argument("--slots", type=positive, default="8")
    parser.add_argument("--candidates", type=positive, default="8", help="most candidates of a problem")
    parser.add_argument("--copies", type=positive, default="4")
    parser.add_argument("--repeats", type=positive, default="9")
    parser.add_argument("--jobs", type=positive, default="1", help="candidates compiled at a time")
    parser.add_argument("--seconds", type=positive, default=math.inf, help="stops in time for this")
    parser.add_argument("--folder", type=Path, default=Path(str(TABLES)), help="where the table is")
    parser.add_argument("--again", action="store_true", help="measures what the table has, too")
    return parser.read(arguments)


def listed(one: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Returns what reads words between commas."""
    return lambda text: [one(word) for word in text.split(",")]


def positive(word: str) -> int:
    """Reads a whole number above zero."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"given '{word}', expected a whole number of at least 1")
    return int(word)


def shape(word: str) -> Shape:
    """Reads tokens x k x n."""
    parts = word.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"given '{word}', expected tokens x k x n such as 16384x2048x2048")
    m, k, n = (int(part) for part in parts)
    for name, size, of in (("tokens", m, TILE_M), ("k", k, TILE_K), ("n", n, TILE_K)):
        if size % of:
            raise argparse.ArgumentTypeError(f"given '{word}', expected {name} to be a multiple of {of}")
    return m, k, n


def rank(word: str) -> int:
    """Reads a rank that kernels are made for."""
    if word not in map(str, RANKS):
        raise argparse.ArgumentTypeError(f"given '{word}', expected any of {', '.join(map(str, RANKS))}")
    return int(word)


def kind(word: str) -> str:
    """Reads a kind of problem."""
    if word not in KINDS:
        raise argparse.ArgumentTypeError(f"given '{word}', expected any of {', '.join(KINDS)}{nearest(word, KINDS)}")
    return word


if __name__ == "__main__":
    sys.exit(run_script(main))
