"""Training speed of many trials at once against one at a time, on the quick start's base model.

    python scripts/devices/bench_concurrency.py [MODEL] [--trials 1,4,8,16] [--rows 1] [--length 64]
        [--steps 3] [--rank 16]

Every arm trains in one executor with a slot a trial, `--rows` rows of `--length` tokens a trial and step,
all projections adapted. Prints one table: tokens a second and the ratio to one trial at a time.
"""

from jaxrun.process.script import run_script

import argparse
import sys
import time

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from altojax.config.tune_config import BaseSpec, TrialConfig
from altojax.device.batch import Stream, next_part
from altojax.device.executor import Executor
from altojax.device.slots import fresh, new_snapshot
from altojax.device.step import StaticPlan
from altojax.run.prepare import TextRow
from altojax.run.trial import Trial
from jaxlm.families.names import projections
from jaxlm.files.weights import load_model
from jaxlm.models.spec import compute_dtype, remat_choices
from jaxrun.config.script_options import ScriptOptions


def main() -> int:
    """Runs every arm and prints the table."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("model", nargs="?", default="models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--trials", default="1,4,8,16")
    for name, default in (("rows", 1), ("length", 64), ("steps", 3), ("rank", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.read()
    table = Table("trials at once", "s a step", "tokens/s", "times one at a time", "compile s", "step's memory GiB")
    alone = None
    for trials in (int(word) for word in options.trials.split(",")):
        seconds, executor = measure(options, trials)
        speed = trials * options.rows * options.length / seconds
        alone = alone or speed
        done = executor.programs.stats().done[0]
        cells = (f"{seconds:.2f}", f"{speed:.0f}", f"{speed / alone:.2f}")
        table.add_row(str(trials), *cells, f"{done.seconds:.1f}", f"{done.temp_bytes / 2**30:.2f}")
    Console().print(
        f"{jax.devices()[0].device_kind}, {options.rows} rows of {options.length} tokens, rank {options.rank}"
    )
    Console().print(table)
    return 0


def measure(options: argparse.Namespace, trials: int) -> tuple[float, Executor]:
    """Returns the median seconds of a step of `trials` trials, and the executor that took them."""
    spec = BaseSpec(model_name_or_path=options.model)
    config, model = load_model(options.model, dtype=compute_dtype(spec), **remat_choices(spec)[0]._asdict())
    sites = projections(config)
    plan = StaticPlan(trials, options.rank, sites, (options.length,), accumulates=False, drops=False, packed=False)
    executor = Executor(model, plan)
    random = np.random.default_rng(0)
    targets = np.arange(options.length) >= options.length // 2
    rows = [TextRow(random.integers(0, config.vocab_size, options.length).astype(np.int32), targets) for _ in range(64)]
    stream = Stream(rows, 0, 100_000, options.rows, 1)
    shapes = {key: (site.in_features, site.out_features) for key, site in sites.items()}
    layers = {key: tuple(range(config.num_layers)) for key in sites}
    one = TrialConfig(lora_rank=options.rank)
    for slot in range(trials):
        adapter = fresh(shapes, layers, total_layers=config.num_layers, rank=options.rank, seed=slot)
        trial = Trial(slot, "bench", str(slot), one, layers, stream, slot, options.length, (), ())
        executor.put(slot, new_snapshot(adapter, accumulates=False), trial.hyper())
    times = []
    for step in range(options.steps + 1):
        begin = time.perf_counter()
        jax.block_until_ready(executor.train([next_part(slot, stream, slot, step, 0) for slot in range(trials)]))
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:])), executor


if __name__ == "__main__":
    sys.exit(run_script(main))
