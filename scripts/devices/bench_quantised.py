"""Training steps of many adapters over one base in bfloat16 and packed in fewer bits, on this machine.

    python scripts/devices/bench_quantised.py [--model llama-3.1-8b] [--forms bfloat16 int8 nf4] [--tokens 4096 16384]
        [--slots 8] [--length 512] [--rank 16] [--remat full] [--parts steps decode] [--out runs/bench-quantised.json]

Random weights of a shape of configs/shapes, made on the device in the form in which they stay, so that a base may be
larger in bfloat16 than the device's memory. All projections are adapted, every slot has as many rows of `--length`
tokens as make up `--tokens` a step; every token but the first is learned. Prints a table: gigabytes of the base, then
of each step milliseconds, tokens a second, how much slower than in the first form, gigabytes that stay (base, adapters,
moments), those of the step beside them, and the most that the process held until then. Steps that --out has already are
not measured again, so that the same command goes on where it was stopped. A second table, the part `decode`, has what
making the matrices of a layer dense takes by itself, in bytes read and written a second beside those of a copy.
bench_peft_quantised.py has PEFT's step on bitsandbytes' nf4.

70B, one form and number of slots a call: --model llama-3.1-70b --forms nf4 --slots 8 --tokens 4096 --steps 3
"""

from jaxrun.process.script import run_script

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from full_slots import SHAPES, fill, kernels_here, ms_a_step, random_rows
from jaxtyping import PRNGKeyArray
from rich.console import Console
from rich.table import Table

from altojax.config.tune_config import BaseSpec
from altojax.device.batch import rows_here
from altojax.device.executor import Executor
from altojax.device.step import StaticPlan
from jaxlm.devices.frozen_weight import FrozenWeight, Pack
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import projections, weights
from jaxlm.models.computation import scans_layers
from jaxlm.models.transformer import Transformer
from jaxlm.quantised.formats import PACKS, bytes_of, is_packable
from jaxrun.config.script_options import ScriptOptions
from jaxrun.files.atomic import write_atomic

DENSE = "bfloat16"
REPEATS = 20
"""Times that a layer is made dense, one after the other."""


def main() -> int:
    """Measures every form and prints the tables."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("--model", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--forms", nargs="+", choices=[DENSE, *PACKS], default=[DENSE, "int8", "nf4"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096, 16384], help="of a step")
    for name, default in (("slots", 8), ("length", 512), ("rank", 16), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--parts", nargs="+", choices=("steps", "decode"), default=["steps", "decode"])
    parser.add_argument("--remat", default="full", choices=("none", "dots", "full"))
    parser.add_argument("--scan", action=argparse.BooleanOptionalAction, help="a training run's choice by default")
    parser.add_argument("--kernels", choices=kernels_here(), default=kernels_here()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-quantised.json"))
    options = parser.read()
    options.scan = scans_layers(BaseSpec(model_name_or_path="random", scan_layers=options.scan), options.remat)
    config = SHAPES[options.model]
    console = Console(width=120)
    if "steps" in options.parts:
        print_steps(config, options, console)
    if "decode" in options.parts:
        console.print(dense_table(config, [form for form in options.forms if form != DENSE]))
    return 0


def print_steps(config: ModelConfig, options: argparse.Namespace, console: Console) -> None:
    """Measures the steps of every form that are not known yet, and prints all that were asked for."""
    settings = {
        name: getattr(options, name) for name in ("model", "slots", "length", "rank", "remat", "scan", "kernels")
    }
    found = json.loads(options.out.read_text()) if options.out.exists() else {}

    def key(form: str, tokens: int) -> str:
        return json.dumps([jax.devices()[0].device_kind, form, tokens, settings])

    for form in options.forms:
        if missing := [tokens for tokens in options.tokens if key(form, tokens) not in found]:
            for tokens, step in zip(missing, steps_of(config, form, missing, options), strict=True):
                found[key(form, tokens)] = step
                options.out.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(options.out, json.dumps(found, indent=1).encode())
                print(form, step, file=sys.stderr, flush=True)
    columns = (
        "base",
        "base GB",
        "tokens a step",
        "ms",
        "tokens/s",
        "slower",
        "stay GB",
        "step GB",
        "peak GB",
        "compile s",
    )
    table = Table(*columns)
    for form in options.forms:
        for tokens in options.tokens:
            step, plain = found[key(form, tokens)], found[key(options.forms[0], tokens)]
            sizes = [f"{step[size] / 1e9:.2f}" for size in ("base", "stays", "temporary", "peak")]
            times = f"{step['tokens'] / step['ms'] * 1e3:,.0f}", f"{step['ms'] / plain['ms'] - 1:+.1%}"
            row = form, sizes[0], f"{step['tokens']:,}", f"{step['ms']:.1f}", *times, *sizes[1:]
            table.add_row(*row, f"{step['compile_s']:.0f}")
    console.print(
        f"{options.model} on {jax.devices()[0].device_kind}, jax {jax.__version__}, {options.slots} slots of rows of "
        f"{options.length} tokens, rank {options.rank}, {options.kernels}, remat {options.remat}, layers "
        f"{'scanned' if options.scan else 'in place'}"
    )
    console.print(table)


def steps_of(
    config: ModelConfig, form: str, tokens: Sequence[int], options: argparse.Namespace
) -> Iterator[dict[str, float]]:
    """Yields each step: its tokens, milliseconds and seconds to compile, and bytes as the columns of the table."""
    model = random_model(config, None if form == DENSE else PACKS[form], options)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    kinds: dict[str, Any] = {"accumulates": False, "drops": False, "kernels": options.kernels}
    sites = projections(config)
    plan = StaticPlan(options.slots, options.rank, sites, rows_here([[options.length]]), **kinds)
    rows = random_rows(config, options.length)
    with Executor(model, plan) as executor:
        for asked in tokens:
            batch = max(1, asked // (options.slots * options.length))
            step = fill(executor, config, rows, slots=options.slots, rank=options.rank, batch=batch)
            ms = ms_a_step(step, options.steps)
            done = executor.programs.stats().done[-1]
            times = {"tokens": batch * options.slots * options.length, "ms": ms, "compile_s": done.seconds}
            peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
            sizes = {"stays": executor.resident_bytes(), "temporary": done.temp_bytes, "peak": peak}
            yield {**times, "base": held, **sizes}


def random_model(config: ModelConfig, pack: Pack | None, options: argparse.Namespace) -> Transformer:
    """Returns a model whose packed matrices are the same in every layer: drawing and packing one takes less memory."""

    def build() -> Transformer:
        kinds: dict[str, Any] = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
        return Transformer(config, **kinds, remat=options.remat, scan_layers=options.scan, rngs=nnx.Rngs(0))

    packed = {} if pack is None else {tuple(one.path.split(".")): one for one in weights(config) if is_packable(one)}

    @jax.jit
    def others() -> dict[tuple[str, ...], Any]:
        flat = nnx.to_flat_state(nnx.state(build()))
        return {path: variable.get_value() for path, variable in flat if path not in packed}

    graph, state = nnx.split(nnx.eval_shape(build))
    values = others()
    for number, (path, weight) in enumerate(packed.items()):
        assert pack is not None
        values[path] = random_stack(pack, weight.shape, len(weight.entries), number)
    flat = {path: variable.replace(values[path]) for path, variable in nnx.to_flat_state(state)}
    return nnx.merge(graph, nnx.from_flat_state(flat))


def random_stack(pack: Pack, shape: tuple[int, ...], layers: int, seed: int) -> FrozenWeight:
    """Returns a packed random matrix, repeated for so many layers."""

    @jax.jit
    def draw(key: PRNGKeyArray) -> FrozenWeight:
        one = pack(0.02 * jax.random.normal(key, (1, *shape), jnp.float32))
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (layers, *leaf.shape[1:])), one)

    return draw(jax.random.key(seed))


def dense_table(config: ModelConfig, forms: list[str]) -> Table:
    """Times a copy of a layer's matrices in bfloat16, and making them dense from each form."""
    shapes = [one.shape for one in weights(config) if is_packable(one)]
    arrays = [jnp.zeros((1, *shape), jnp.bfloat16) for shape in shapes]
    dense = sum(array.nbytes for array in arrays)
    table = Table("to bfloat16", "us", "GB/s read and written", "of a copy")
    copied = 2 * dense / seconds_of(lambda array: array + jnp.bfloat16(1), arrays)
    table.add_row("copy", f"{2 * dense / copied * 1e6:.0f}", f"{copied / 1e9:,.0f}", "1.00")
    for form in forms:
        pack = next(pack for known, pack in PACKS.items() if known == form)
        packed = [random_stack(pack, shape, 1, number) for number, shape in enumerate(shapes)]
        seconds = seconds_of(lambda one: one.dense(jnp.bfloat16), packed)
        rate = (sum(map(bytes_of, packed)) + dense) / seconds
        row = f"{seconds * 1e6:.0f}", f"{rate / 1e9:,.0f}", f"{rate / copied:.2f}"
        table.add_row(form, *row)
        print(form, *row, file=sys.stderr, flush=True)
    return table


def seconds_of(function: Callable[[Any], jax.Array], operands: list[Any]) -> float:
    """Returns the seconds of a call for each operand, of many in a loop that the device runs by itself."""

    def all_of(operands: list[Any]) -> list[jax.Array]:
        return list(map(function, operands))

    @partial(jax.jit, static_argnums=1)
    def run(operands: list[Any], times: int) -> list[jax.Array]:
        def again(_: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            operands, _ = jax.lax.optimization_barrier(carry)
            return operands, all_of(operands)

        made = [jnp.zeros(one.shape, one.dtype) for one in jax.eval_shape(all_of, operands)]
        return jax.lax.fori_loop(0, times, again, (operands, made))[1]

    took = []
    for times in (REPEATS, 2 * REPEATS):
        jax.block_until_ready(run(operands, times))
        begun = time.perf_counter()
        jax.block_until_ready(run(operands, times))
        took.append(time.perf_counter() - begun)
    return (took[1] - took[0]) / REPEATS


if __name__ == "__main__":
    sys.exit(run_script(main))
