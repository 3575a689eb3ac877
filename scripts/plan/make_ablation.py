"""Writes the workloads of ALTO's ablation, from throughputs that are predicted for H100s.

    python scripts/plan/make_ablation.py [--half-tokens 500, or another of scripts/plan/plan_capacity.py]
    altojax simulate configs/simulate/alto-ablation.yaml
    altojax simulate configs/simulate/alto-ablation-moldable.yaml

Eleven tasks of four models on a node of eight GPUs: the two small models and the 32B model on three sets of data each,
the 70B model on two. `alto-ablation.yaml` gives each model the GPUs that ALTO gave it, 1, 1, 2 and 4; in the other file
a task may use any number from there on. What ALTO does not say, and is chosen here: rows and lengths of the data, and
which set has which share of samples left by early exit (from 17 to 28 %, as ALTO measured).

Speeds are predicted, as in `docs/measured/capacity.md`, for a quarter of the trials each at batches of 1, 2, 4 and 8;
set-up is the compilation that was measured for 8B (101 s, `docs/measured/log.md`), in proportion to layers. Trials
share a base under adapter or tensor parallelism, whichever is faster; one at a time they take FSDP or tensor
parallelism.
"""

from jaxrun.process.script import run_script

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from plan_capacity import cluster_of, job_of, parse

from altojax.estimates.speed_model import OURS, AdapterLoad, ClusterModel, best
from jaxrun.config.strict_yaml import dump_yaml
from jaxrun.files.atomic import write_atomic

FOLDER = Path(__file__).parents[2] / "configs" / "simulate"
GPUS = 8
MODELS = {"llama-3.1-8b": 1, "qwen2.5-7b": 1, "qwen2.5-32b": 2, "llama-3.1-70b": 4}
"""Model -> GPUs that ALTO ran it on."""
DATA = {"gsm8k": (7_473, 256, 0.28), "tulu3": (10_000, 1_024, 0.22), "openthoughts3": (10_000, 2_048, 0.17)}
"""Set -> rows, mean length in tokens, share of the samples that early exit leaves."""
SETS = {"llama-3.1-70b": ("gsm8k", "tulu3")}
"""The sets of a model, where not all."""
BATCHES = (1, 2, 4, 8)
TRIALS = {1: 60}
"""Trials of a task by the GPUs of its model, where not 64."""
EPOCHS = 3
SETUP_S = 101 / 32
"""Seconds of compilation a layer."""
SHARED = (OURS, "tensor, many adapters")
ALONE = ("FSDP, one adapter", "tensor, one adapter")

HEADER = """\
# ALTO's ablation in simulation: eleven tasks of four models on eight H100s{moldable}.
#
#   altojax simulate configs/simulate/{name}
#
# Hardware: none. Time: seconds. Expected: see docs/measured/log.md. Made by scripts/plan/make_ablation.py, which says
# what is predicted, measured and assumed; `alone_speeds` are with one trial at a time.
"""


def samples_a_second(ways: Sequence[str], job: AdapterLoad, cluster: ClusterModel, gpus: int) -> float | None:
    """Samples a second over trials of all batch sizes, each with as many samples; None where one row does not fit."""
    speeds = [_of_batch(ways, job, cluster, gpus, rows) for rows in BATCHES]
    known = [speed for speed in speeds if speed is not None]
    return harmonic_mean(known) if len(known) == len(speeds) else None


def _of_batch(ways: Sequence[str], job: AdapterLoad, cluster: ClusterModel, gpus: int, rows: int) -> float | None:
    """Of trials with so many rows; a batch that does not fit is split into halves that do."""
    while rows:
        plans = [best(way, replace(job, rows=rows), cluster, gpus) for way in ways]
        fastest = max((plan.tokens_per_s for plan in plans if plan is not None), default=None)
        if fastest is not None:
            return fastest / job.length
        rows //= 2
    return None


def task_of(model: str, data: str, options: Namespace, widths: Sequence[int]) -> dict[str, Any]:
    """Returns one task as a workload has it."""
    rows, length, kept = DATA[data]
    trials = TRIALS.get(MODELS[model], 64)
    job = replace(job_of(model, options), length=length, trials=trials)
    cluster = cluster_of(options)

    def speeds(ways: Sequence[str]) -> dict[str, float]:
        found = {width: samples_a_second(ways, job, cluster, width) for width in widths}
        return {str(width): round(speed, 4) for width, speed in found.items() if speed is not None}

    return {
        "name": f"{model}-{data}",
        "group": model,
        "speeds": speeds(SHARED),
        "alone_speeds": speeds(ALONE),
        "samples": float(trials * rows * EPOCHS),
        "kept": kept,
        "setup_s": round(SETUP_S * job.config.num_layers, 1),
    }


def write(name: str, widths_of: Callable[[int], Sequence[int]], moldable: str) -> None:
    """Writes one workload."""
    options = parse(sys.argv[1:])
    tasks = [
        task_of(model, data, options, widths_of(gpus))
        for model, gpus in MODELS.items()
        for data in SETS.get(model, tuple(DATA))
    ]
    # Once an underperforming trial has been ended, at five percent, most of what a task has left is known.
    workload = {"cluster": {"node": GPUS}, "known_after": 0.3, "ablation": "fifo", "tasks": tasks}
    write_atomic(FOLDER / name, HEADER.format(name=name, moldable=moldable) + dump_yaml(workload))


def main() -> int:
    """Writes both workloads."""
    write("alto-ablation.yaml", lambda gpus: [gpus], "")
    from_there_on = lambda gpus: [width for width in (1, 2, 4, 8) if width >= gpus]  # noqa: E731
    write("alto-ablation-moldable.yaml", from_there_on, ", with any number of GPUs")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
