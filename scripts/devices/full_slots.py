"""A trial in every slot, with random rows, and the kernels of a step that was traced: a part of other scripts."""

import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from altojax.device.batch import Stream, next_part
from altojax.device.executor import Executor
from altojax.device.objectives.rows import TextRow
from altojax.device.slots import fresh
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import projections
from jaxlm.files.weights import read_model_config
from pallas_kernels.api import IMPLEMENTATIONS

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {one.name: read_model_config(one, weights=False) for one in sorted((ROOT / "configs" / "shapes").iterdir())}
"""Known models by name."""
# A small epsilon would let AdamW turn the last bit of a gradient that is nearly 0 into a step of the whole rate.
HYPER = {
    "learning_rate": 1e-3, "schedule": 1, "warmup_steps": 0, "decay_steps": 0, "total_steps": 100, "min_lr_ratio": 0.0,
    "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-4, "max_grad_norm": 1.0, "scale": 2.0,
    "dropout": 0.0,
}  # fmt: skip


def kernels_here() -> list[str]:
    """Returns the implementations of the adapter product that run on this machine."""
    return [name for name, one in IMPLEMENTATIONS.items() if not one.device()]


def random_rows(config: ModelConfig, length: int, first: int = 1) -> list[TextRow]:
    """Returns 64 rows, always the same, whose targets are the tokens from `first` on."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (64, length)).astype(np.int32)
    return [TextRow(row, np.arange(length) >= first) for row in tokens]


def new_adapter(config: ModelConfig, rank: int, seed: int) -> Any:
    """Returns a fresh adapter on all projections of all layers."""
    sites = projections(config)
    return fresh(sites, {key: one.layers for key, one in sites.items()}, rank, seed=seed)


def fill(
    executor: Executor, config: ModelConfig, rows: list[TextRow], *, slots: int, rank: int, batch: int
) -> Callable[[int], Any]:
    """Puts a trial into every slot; returns what takes step n of all, of `batch` rows each."""
    for slot in range(slots):
        executor.put(slot, new_adapter(config, rank, slot), HYPER)
    return stepping(executor, rows, slots=slots, batch=batch)


def stepping(executor: Executor, rows: list[TextRow], *, slots: int, batch: int) -> Callable[[int], Any]:
    """Returns what takes step n of all slots, of `batch` rows each."""
    stream = Stream(rows, 0, 100_000, batch, 1)
    return lambda number: executor.train([next_part(slot, stream, slot, number, 0) for slot in range(slots)])


def ms_a_step(step: Callable[[int], Any], steps: int) -> float:
    """Returns the milliseconds of a step, over so many in flight one after the other, after three that warm up."""
    for number in range(3):
        jax.block_until_ready(step(number))
    begun = time.perf_counter()
    for number in range(3, 3 + steps):
        last = step(number)
    jax.block_until_ready(last)
    return (time.perf_counter() - begun) / steps * 1e3


def kernels_of(step: Callable[[int], Any], folder: Path) -> Iterator[tuple[str, str, float, float]]:
    """Traces a step into a folder; yields device, name, begin and length of every kernel, in seconds."""
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        jax.block_until_ready(step(3))
    trace = json.loads(gzip.decompress(max(folder.rglob("perfetto_trace.json.gz")).read_bytes()))
    events = trace["traceEvents"] if isinstance(trace, dict) else trace
    process = {one["pid"]: one["args"].get("name", "") for one in events if one.get("name") == "process_name"}
    streams = {
        (one["pid"], one.get("tid"))
        for one in events
        if one.get("name") == "thread_name" and "Stream" in str(one["args"].get("name"))
    }
    for one in events:
        if one.get("ph") == "X" and (one["pid"], one.get("tid")) in streams:
            yield process.get(one["pid"], str(one["pid"])), one["name"], one["ts"] * 1e-6, one["dur"] * 1e-6
