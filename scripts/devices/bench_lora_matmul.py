"""The adapter product against the base product alone, and against what else one could use, on this machine.

    python scripts/devices/bench_lora_matmul.py [--shapes 16384x2048x2048,...] [--slots 8,64]
        [--ranks 16,64] [--dropout 0]

A shape is tokens x k x n; tokens are dealt evenly to the slots. Every arm gets the same random bfloat16 operands,
`--copies` sets of them in one compiled function, so that launches cost nothing and caches hold nothing from the call
before. Times are medians over `--repeats` rounds with a call always in flight, in milliseconds a product; "fwd+bwd"
gives y, dX, dA and dB, and of the base y and dX. Ratios are to the base product of the same run. PEFT, tokamax and
ragged_dot are measured where they can be imported and run.
"""

from jaxrun.process.script import run_script

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.console import Console
from rich.table import Table

from jaxrun.config.script_options import ScriptOptions
from jaxrun.terminal.timing import seconds_in_flight
from pallas_kernels import Dropout, lora_matmul
from pallas_kernels.api import IMPLEMENTATIONS

Operands = tuple[Array, ...]
TILE = 128


def main() -> int:
    """Measures every arm at every shape, number of slots and rank, and prints one table."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("--shapes", default="16384x2048x2048,16384x2048x8192,16384x8192x2048,8192x4096x14336")
    parser.add_argument("--slots", default="8")
    parser.add_argument("--ranks", default="16")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    options = parser.read()
    table = Table("tokens x k x n", "slots", "rank", "arm", "fwd ms", "ratio", "fwd+bwd ms", "ratio")
    for shape in options.shapes.split(","):
        m, k, n = (int(word) for word in shape.split("x"))
        for slots in (int(word) for word in options.slots.split(",")):
            for rank in (int(word) for word in options.ranks.split(",")):
                base: tuple[float, ...] | None = None
                for name, times in measure(m, k, n, slots, rank, options):
                    base = base or times
                    cells = [
                        word for one, of in zip(times, base, strict=True) for word in (f"{one:.3f}", f"{one / of:.2f}")
                    ]
                    table.add_row(shape, str(slots), str(rank), name, *cells)
                    print(shape, slots, rank, name, *cells, file=sys.stderr, flush=True)
    console = Console(width=110)
    console.print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, bfloat16, dropout {options.dropout:g}")
    console.print(table)
    return 0


def measure(
    m: int, k: int, n: int, slots: int, rank: int, options: argparse.Namespace
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yields each arm's name and its milliseconds forward, and forward and backward."""
    sets = [draw(m, k, n, slots, rank, seed) for seed in range(options.copies)]
    rows = jnp.repeat(jnp.arange(slots, dtype=jnp.int32), m // TILE // slots, total_repeat_length=m // TILE)
    dropout = None
    if options.dropout:
        keys = jax.random.bits(jax.random.key(9), (m,), jnp.uint32)
        dropout = Dropout(jnp.full((slots,), options.dropout, jnp.float32), keys)
    scale = jnp.full((slots,), 2.0, jnp.float32)

    def ours(name: str) -> Callable[..., Array]:
        return lambda x, w, a, b: lora_matmul(x, w, a, b, scale, rows, dropout=dropout, implementation=name)

    def ragged(x: Array, w: Array, a: Array, b: Array) -> Array:
        sizes = jnp.full((slots,), m // slots, jnp.int32)
        h = jax.lax.ragged_dot(x, a.astype(x.dtype), sizes) * jnp.bfloat16(2.0)
        return x @ w + jax.lax.ragged_dot(h, b.astype(x.dtype), sizes)

    def einsum(x: Array, w: Array, a: Array, b: Array) -> Array:
        h = jnp.einsum("gmk,gkr->gmr", x.reshape(slots, -1, k), a.astype(x.dtype)) * jnp.bfloat16(2.0)
        return x @ w + jnp.einsum("gmr,grn->gmn", h, b.astype(x.dtype)).reshape(m, n)

    arms: dict[str, Callable[..., Array]] = {"base product alone": lambda x, w, a, b: x @ w}
    arms |= {name: ours(name) for name, one in IMPLEMENTATIONS.items() if not one.device()}
    if options.peers:
        arms |= {"batched einsum": einsum, "lax.ragged_dot": ragged}
        try:
            arms["tokamax ragged_dot"] = tokamax_arm(m, slots)
        except ImportError as error:
            print(f"tokamax ragged_dot: {error}", file=sys.stderr)
    for name, arm in arms.items():
        try:
            yield name, (time_forward(arm, sets, options), time_both(arm, sets, options))
        except (ValueError, NotImplementedError, RuntimeError) as error:
            print(f"{name}: {str(error).partition(chr(10))[0]}", file=sys.stderr)
    if options.peers and importlib.util.find_spec("peft") is not None and importlib.util.find_spec("torch") is not None:
        yield "PEFT eager, one adapter", peft_times(m, k, n, rank, options)


def draw(m: int, k: int, n: int, slots: int, rank: int, seed: int) -> Operands:
    """Returns x, w, a, b and the cotangent of y."""
    keys = jax.random.split(jax.random.key(seed), 5)
    x, dy = jax.random.normal(keys[0], (m, k), jnp.bfloat16), jax.random.normal(keys[4], (m, n), jnp.bfloat16)
    w = jax.random.normal(keys[1], (k, n), jnp.bfloat16) * jnp.bfloat16(k**-0.5)
    a = jax.random.normal(keys[2], (slots, k, rank), jnp.float32) * np.float32(k**-0.5)
    return x, w, a, jax.random.normal(keys[3], (slots, rank, n), jnp.float32), dy


def tokamax_arm(m: int, slots: int) -> Callable[..., Array]:
    """The same with tokamax's ragged_dot."""
    import tokamax

    sizes = jnp.full((slots,), m // slots, jnp.int32)

    def arm(x: Array, w: Array, a: Array, b: Array) -> Array:
        h = tokamax.ragged_dot(x, a.astype(x.dtype), sizes) * jnp.bfloat16(2.0)
        return x @ w + tokamax.ragged_dot(h, b.astype(x.dtype), sizes)

    return arm


def time_forward(arm: Callable[..., Array], sets: list[Operands], options: argparse.Namespace) -> float:
    """Milliseconds of a product."""
    step = jax.jit(lambda sets: [arm(*operands[:4]) for operands in sets])
    return median_ms(lambda: step(sets), jax.block_until_ready, options) / len(sets)


def time_both(arm: Callable[..., Array], sets: list[Operands], options: argparse.Namespace) -> float:
    """Milliseconds of a product with its gradients."""

    def one(x: Array, w: Array, a: Array, b: Array, dy: Array) -> Any:
        y, backward = jax.vjp(lambda x, a, b: arm(x, w, a, b), x, a, b)
        return y, backward(dy)

    step = jax.jit(lambda sets: [one(*operands) for operands in sets])
    return median_ms(lambda: step(sets), jax.block_until_ready, options) / len(sets)


def peft_times(m: int, k: int, n: int, rank: int, options: argparse.Namespace) -> tuple[float, float]:
    """The same of PEFT's own layer with one adapter for all tokens, eager, in bfloat16."""
    import peft
    import torch

    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(k, n, bias=False)).to("cuda", torch.bfloat16)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["0"], lora_dropout=options.dropout)
    model = peft.get_peft_model(base, config).to(torch.bfloat16)
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(m, n, device="cuda", dtype=torch.bfloat16)

    def forward() -> Any:
        for _ in range(options.copies):
            model(x)
        return torch.cuda.current_stream().record_event()

    def both() -> Any:
        for _ in range(options.copies):
            model(x).backward(dy)
        return torch.cuda.current_stream().record_event()

    def wait(done: Any) -> None:
        done.synchronize()

    return median_ms(forward, wait, options) / options.copies, median_ms(both, wait, options) / options.copies


def median_ms(call: Callable[[], Any], wait: Callable[[Any], Any], options: argparse.Namespace) -> float:
    """Returns the median milliseconds of `call`, with another always in flight."""
    wait(call())
    return float(np.median([seconds_in_flight(call, wait) for _ in range(options.repeats)])) * 1e3


if __name__ == "__main__":
    sys.exit(run_script(main))
