"""A whole training step of many adapters over one base, against the same step without adapters, on this machine.

    python scripts/devices/bench_step.py [--model llama-3.2-1b] [--slots 8] [--rows 4]
        [--length 512] [--rank 16]

Random weights of a shape of configs/shapes in bfloat16, all seven projections adapted, every slot `--rows` rows of
`--length` tokens, of which the share `--targets` is learned. Arms: each implementation of the adapter product that runs
here, and the base alone (the same step and head, with the gradient of the embedded tokens). Prints one table:
milliseconds a step, tokens a second, their ratio to the base alone, the share of the dense bfloat16 peak (an H100's 989
TFLOP/s), the step's memory beside weights and adapters. `--live N` times the same program with N of each slot's rows,
the rest of the batch padding. `--profile DIR` writes a trace and lists the kernels that take
longest.
"""

from jaxrun.process.script import run_script

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from full_slots import SHAPES, fill, kernels_here, kernels_of, ms_a_step, random_rows, stepping
from rich.console import Console
from rich.table import Table

from altojax.config.tune_config import BaseSpec
from altojax.device.batch import rows_here
from altojax.device.executor import Executor
from altojax.device.multi_lora.routing import LoRA
from altojax.device.step import StaticPlan, split_model
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import projections
from jaxlm.models.computation import scans_layers
from jaxlm.models.head import head_chunk_of, target_nll
from jaxlm.models.transformer import Transformer
from jaxrun.config.script_options import ScriptOptions

PEAK = 989e12


def main() -> int:
    """Measures every arm and prints the table."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("--model", choices=SHAPES, default="llama-3.2-1b")
    for name, default in (("slots", 8), ("rows", 4), ("length", 512), ("rank", 16), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--targets", type=float, default=1.0)
    parser.add_argument("--averages", nargs="*", type=float, default=[], help="windows that each slot carries")
    parser.add_argument("--live", nargs="*", type=int, default=[], help="rows of a slot, fewer than --rows")
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    parser.add_argument("--scan", action=argparse.BooleanOptionalAction, help="a training run's choice by default")
    parser.add_argument("--profile", type=Path)
    arms = ["base alone", *kernels_here()]
    parser.add_argument("--arms", nargs="+", choices=arms, default=arms)
    options = parser.read()
    options.scan = scans_layers(BaseSpec(model_name_or_path="random", scan_layers=options.scan), options.remat)
    config = SHAPES[options.model]
    tokens = options.slots * options.rows * options.length
    table = Table("arm", "ms a step", "tokens/s", "ratio", "of peak", "compile s", "step's memory GiB")
    base: float | None = None
    for arm in options.arms:
        alone = arm == "base alone"
        ms, compile_s, temp, padded = base_alone(config, options) if alone else adapted(config, options, arm)
        base = base or ms
        flops = tokens * flops_a_token(config, options)
        share = f"{flops / (ms * 1e-3) / PEAK:.2f}"
        table.add_row(
            arm,
            f"{ms:.1f}",
            f"{tokens / ms * 1e3:,.0f}",
            f"{ms / base:.2f}",
            share,
            f"{compile_s:.0f}",
            f"{temp / 2**30:.1f}",
        )
        print(arm, f"{ms:.1f} ms, {tokens / ms * 1e3:,.0f} tokens/s", file=sys.stderr, flush=True)
        for rows, ms in padded.items():
            text = rows * options.slots * options.length
            table.add_row(f"{arm}, {rows} of {options.rows} rows", f"{ms:.1f}", f"{text / ms * 1e3:,.0f}")
    console = Console(width=110)
    shape = f"{options.slots} slots x {options.rows} rows x {options.length} tokens, rank {options.rank}"
    console.print(
        f"{options.model} on {jax.devices()[0].device_kind}, jax {jax.__version__}, {shape}, "
        f"targets {options.targets:g}, averages {options.averages}, remat {options.remat}, "
        f"layers {'scanned' if options.scan else 'in place'}"
    )
    console.print(table)
    return 0


def flops_a_token(config: ModelConfig, options: argparse.Namespace) -> float:
    """Floating-point operations of the frozen base: forward, activations' gradients, causal attention, head."""
    kv = config.num_kv_heads * config.head_dim
    width, q_width = config.hidden_size, config.num_heads * config.head_dim
    layer = width * (2 * q_width + 2 * kv) + 3 * width * config.intermediate_size
    attention = 3.5 * 2 * options.length * q_width
    head = 4 * config.vocab_size * width * options.targets
    return config.num_layers * (4 * layer + attention) + head


def build(config: ModelConfig, options: argparse.Namespace) -> Transformer:
    """Returns the model with random weights."""
    return Transformer(
        config,
        dtype=jnp.bfloat16,
        param_dtype=jnp.bfloat16,
        remat=options.remat,
        scan_layers=options.scan,
        rngs=nnx.Rngs(0),
    )


def adapted(
    config: ModelConfig, options: argparse.Namespace, kernels: str
) -> tuple[float, float, int, dict[int, float]]:
    """The executor's own step: milliseconds, seconds of compilation, bytes of temporaries, milliseconds by `--live`."""
    sites = projections(config)
    kinds: dict[str, Any] = {"accumulates": False, "drops": False, "kernels": kernels}
    plan = StaticPlan(
        options.slots, options.rank, sites, rows_here([[options.length]]), **kinds, averages=tuple(options.averages)
    )
    executor = Executor(build(config, options), plan)
    first = max(1, round(options.length * (1 - options.targets)))
    rows = random_rows(config, options.length, first)
    step = fill(executor, config, rows, slots=options.slots, rank=options.rank, batch=options.rows)
    ms = time_steps(step, options, kernels)
    padded = {
        live: time_steps(stepping(executor, rows, slots=options.slots, batch=live), options, f"{kernels} {live}")
        for live in options.live
    }
    done = executor.programs.stats().done[0]
    return ms, done.seconds, done.temp_bytes, padded


def base_alone(config: ModelConfig, options: argparse.Namespace) -> tuple[float, float, int, dict[int, float]]:
    """The same of the base without adapters: loss of the targets and its gradient to the embedded tokens."""
    model = build(config, options)
    frozen, _ = split_model(model, LoRA)
    rows, length = options.slots * options.rows, options.length
    tokens = jax.random.randint(jax.random.key(0), (rows, length), 0, config.vocab_size, jnp.int32)
    first = max(1, round(length * (1 - options.targets)))
    at = (
        jnp.arange(rows, dtype=jnp.int32)[:, None] * length + jnp.arange(first - 1, length - 1, dtype=jnp.int32)
    ).ravel()
    whole = 1 << (at.shape[0] - 1).bit_length()
    at = jnp.pad(at, (0, whole - at.shape[0]))
    chunk = head_chunk_of(config)

    def loss(nudge: jax.Array, weights: Any, tokens: jax.Array) -> jax.Array:
        model = nnx.merge(frozen.graph, nnx.State({}), weights)
        embed = model.embed_tokens
        table = embed.embedding[...]
        model.embed_tokens = lambda indices: jnp.take(table, indices, axis=0) + nudge
        model.head_kernel = lambda: table if config.tie_embeddings else model.lm_head.embedding[...]
        flat = model(tokens).reshape(-1, config.hidden_size)[at]
        ids, softcap = tokens.reshape(-1)[at + 1], config.logit_softcap
        return jnp.sum(target_nll(flat, model.head_kernel(), ids, chunk=chunk, softcap=softcap))

    nudge = jnp.zeros((rows, length, config.hidden_size), jnp.bfloat16)
    begin = time.perf_counter()
    step = jax.jit(jax.value_and_grad(loss)).lower(nudge, frozen.weights, tokens).compile()
    seconds = time.perf_counter() - begin
    ms = time_steps(lambda _: step(nudge, frozen.weights, tokens), options, "base alone")
    return ms, seconds, int(step.memory_analysis().temp_size_in_bytes), {}


def time_steps(step: Any, options: argparse.Namespace, arm: str) -> float:
    """Milliseconds a step over `--steps` steps; traces one where a profile is asked for."""
    ms = ms_a_step(step, options.steps)
    if options.profile:
        longest_kernels(step, options.profile / arm.replace(" ", "-"))
    return ms


def longest_kernels(step: Any, folder: Path) -> None:
    """Traces a step and prints its kernels by the time they took."""
    total: dict[str, list[float]] = defaultdict(list)
    for _, name, _, seconds in kernels_of(step, folder):
        total[name].append(seconds)
    table = Table("kernel", "times", "ms", "us each")
    ranked = sorted(total.items(), key=lambda item: -sum(item[1]))
    for name, durations in ranked[:32]:
        each = np.mean(durations) * 1e6
        table.add_row(name[:60], str(len(durations)), f"{sum(durations) * 1e3:.2f}", f"{each:.0f}")
    table.add_row("all", "", f"{sum(sum(one) for one in total.values()) * 1e3:.2f}", "")
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(run_script(main))
