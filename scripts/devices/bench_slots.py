"""What a training step takes by the slots at work, and what an exchange of trials takes, on this machine.

    python scripts/devices/bench_slots.py [--model smollm2-135m] [--slots 32] [--rank 64] [--own-rank 64]
        [--length 256] [--live 0 2 8 32] [--averages 8] [--remat none] [--kernels mosaic_gpu]

Random weights of a shape of configs/shapes in bfloat16, all seven projections adapted; every slot at work has one row.
A row of the first table is a step of so many slots: milliseconds where all of them take their optimizer step, and where
none does (as while gradients are gathered). The second has milliseconds of the host and, until the device has done it
too, of an exchange: a new trial put into a slot, a trial copied out of it, its adapter kept. `--profile DIR` traces a
step of every row and lists the kernels that take longest.
"""

from jaxrun.process.script import run_script

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from full_slots import HYPER, SHAPES, kernels_here, kernels_of, ms_a_step, new_adapter, random_rows
from rich.console import Console
from rich.table import Table

from altojax.device.batch import Stream, next_part, rows_here
from altojax.device.executor import Executor
from altojax.device.step import StaticPlan
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import projections
from jaxlm.models.transformer import Transformer
from jaxrun.config.script_options import ScriptOptions


def main() -> int:
    """Measures and prints the tables."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("--model", choices=SHAPES, default="smollm2-135m")
    for name, default in (("slots", 32), ("rank", 64), ("own-rank", 64), ("length", 256), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--live", nargs="+", type=int, default=[0, 2, 8, 32], help="slots at work, ascending")
    parser.add_argument("--averages", nargs="*", type=float, default=[8.0], help="windows that each slot carries")
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    parser.add_argument("--kernels", choices=kernels_here(), default=kernels_here()[0])
    parser.add_argument("--profile", type=Path)
    options = parser.read()
    config = SHAPES[options.model]
    executor = build(config, options)
    print(
        f"{options.model} on {jax.devices()[0].device_kind}, jax {jax.__version__}, {options.slots} slots of rank "
        f"{options.rank}, trials of rank {options.own_rank}, rows of {options.length}, averages {options.averages}, "
        f"{options.kernels}, remat {options.remat}"
    )
    table = Table("slots at work", "ms a step", "ms without updates", "compile s")
    for live in options.live:
        table.add_row(str(live), *times_of(executor, config, options, live))
    Console(width=100).print(table)
    table = Table("exchange", "ms of the host", "ms in all")
    for name, action in exchanges(executor, config, options).items():
        table.add_row(name, *(f"{ms:.1f}" for ms in timed(executor, action)))
    Console(width=100).print(table)
    return 0


def build(config: ModelConfig, options: argparse.Namespace) -> Executor:
    """Returns an executor with a trial in every slot."""
    kinds: dict[str, Any] = {"remat": options.remat, "scan_layers": True, "rngs": nnx.Rngs(0)}
    model = Transformer(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, **kinds)
    kinds = {"accumulates": False, "drops": False, "kernels": options.kernels}
    sites, rows = projections(config), rows_here([[options.length]])
    plan = StaticPlan(options.slots, options.rank, sites, rows, **kinds, averages=tuple(options.averages))
    executor = Executor(model, plan)
    for slot in range(options.slots):
        executor.put(slot, new_adapter(config, options.own_rank, slot), HYPER)
    return executor


def times_of(executor: Executor, config: ModelConfig, options: argparse.Namespace, live: int) -> list[str]:
    """Returns milliseconds with and without updates, and the seconds that the step took to compile."""
    stream = Stream(random_rows(config, options.length), 0, 100_000, 1, 1)
    least = min(filter(None, options.live), default=1)
    first = [next_part(slot, stream, slot, 0, 0) for slot in range(max(live, least))]
    shape = executor.programs.shape_of("train", first)
    compiled = len(executor.programs.stats().done)

    def step(number: int, *, apply: bool) -> Any:
        parts = [next_part(slot, stream, slot, number, 0) for slot in range(live)]
        return executor.train([replace(part, apply=apply) for part in parts], shape)

    found = [ms_a_step(lambda number, apply=apply: step(number, apply=apply), options.steps) for apply in (True, False)]
    seconds = sum(one.seconds for one in executor.programs.stats().done[compiled:])
    if options.profile:
        longest_kernels(lambda number: step(number, apply=True), options.profile / str(live), f"{live} slots at work")
    return [*(f"{ms:.2f}" for ms in found), f"{seconds:.0f}"]


def longest_kernels(step: Callable[[int], Any], folder: Path, title: str) -> None:
    """Traces a step and prints its kernels by the time they took."""
    total: dict[str, list[float]] = defaultdict(list)
    begin, end = np.inf, 0.0
    for _, name, at, seconds in kernels_of(step, folder):
        total[name].append(seconds)
        begin, end = min(begin, at), max(end, at + seconds)
    table = Table("kernel", "times", "ms", "us each", title=title)
    for name, each in sorted(total.items(), key=lambda item: -sum(item[1]))[:24]:
        table.add_row(name[:60], str(len(each)), f"{sum(each) * 1e3:.2f}", f"{np.mean(each) * 1e6:.0f}")
    every = [one for each in total.values() for one in each]
    table.add_row("all", str(len(every)), f"{sum(every) * 1e3:.2f}", f"first to last {(end - begin) * 1e3:.2f} ms")
    Console(width=110).print(table)


def exchanges(executor: Executor, config: ModelConfig, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Returns what is timed, by its name."""
    of_trial = 0, options.own_rank, tuple(executor.plan.projections)
    begun = new_adapter(config, options.own_rank, 1)
    executor.make_places(1)
    return {
        "a new trial's numbers are drawn": lambda: new_adapter(config, options.own_rank, 1),
        "a new trial is put into a slot": lambda: executor.put(0, begun, HYPER),
        "a trial is copied to the host": lambda: executor.take(*of_trial),
        "a trial is parked on the device": lambda: executor.park(0, 0),
        "and put back": lambda: executor.resume(0, 0, options.own_rank, HYPER),
        "adapters of all slots are kept": lambda: executor.keep(range(options.slots)),
        "one of them is copied to the host": lambda: executor.kept(*of_trial),
        "a slot is cleared": lambda: executor.clear(0),
    }


def timed(executor: Executor, action: Callable[[], object]) -> tuple[float, float]:
    """Returns the milliseconds of the second time of two: of the call, and until the device has nothing to do."""
    for _ in range(2):
        begun = time.perf_counter()
        action()
        host = time.perf_counter() - begun
        jax.block_until_ready(executor.model())
        whole = time.perf_counter() - begun
    return host * 1e3, whole * 1e3


if __name__ == "__main__":
    sys.exit(run_script(main))
