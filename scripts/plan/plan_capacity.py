"""Predicts what fits a cluster and how fast it tunes many adapters, for adapter parallelism and its alternatives.

    python scripts/plan/plan_capacity.py [--models llama-3.1-8b qwen2.5-32b llama-3.1-70b] [--gpus 1 2 4 8 16 32 64]
      [--rank 16] [--rows 4] [--length 512] [--trials 60] [--remat auto] [--link auto] [--memory 80GB] [--mfu 0.5]
      [--json] [--plot docs/figures/capacity.svg]

Nothing is measured and no GPU is needed: `docs/measured/capacity.md` states every formula and what they are worth. The
defaults are H100s (SXM, 80 GB) in nodes of 8 with an InfiniBand adapter of 400 Gb/s each; how fast NVLink is, and how
much of a gather computing hides, were measured on two H200s. Prints tables in Markdown; `--plot` draws tokens a second
of a GPU as SVG or PNG.
"""

from jaxrun.process.script import run_script

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from capacity_page import draw, tables, write_plot

from altojax.adapters.target_modules import ALL_LINEAR, match_targets
from altojax.config.tune_config import parse_bytes
from altojax.estimates.memory_model import (
    REMATS,
    adapter_parameters,
    base_of,
    base_on_gpu,
    needed_bytes,
    slot_of,
    slots_that_fit,
)
from altojax.estimates.speed_model import (
    WAYS,
    AdapterLoad,
    ClusterModel,
    PredictedSpeed,
    adapter_parallel,
    best,
    best_in_groups,
    tensor_parallel,
)
from jaxlm.families.names import projections
from jaxlm.files.weights import read_model_config
from jaxlm.models.head import LOGITS_SHARE
from jaxlm.models.spec import Quantize
from jaxlm.quantised.formats import PACKS, forms_of
from jaxrun.config.script_options import ScriptOptions
from jaxrun.process.errors import UserError, nearest

SHAPES = Path(__file__).resolve().parents[2] / "configs" / "shapes"
MODELS = {one.name: read_model_config(one, weights=False) for one in sorted(SHAPES.iterdir())}
DEFAULT_MODELS = ("llama-3.1-8b", "qwen2.5-32b", "llama-3.1-70b")
MEASURED = (
    ("llama-3.2-1b", 8, 4, 512, 93_260, 19.8),
    ("llama-3.1-8b", 4, 2, 512, 17_493, 18.3),
)
"""Model, slots, rows, length, tokens/s, a step's GiB beside weights and adapters on one H100 (docs/measured/log.md)."""
MEASURED_ON_TWO: tuple[tuple[str, str, float, float], ...] = (
    ("llama-3.2-1b", "base sharded", 225.7, 242.1),
    ("llama-3.2-1b", "base whole on each", 225.7, 227.6),
    ("llama-3.2-1b", "tensor", 225.7, 161.0),
    ("llama-3.1-8b", "base sharded", 1279.8, 1377.8),
    ("llama-3.1-8b", "base whole on each", 1279.8, 1257.1),
    ("llama-3.1-8b", "tensor", 1279.8, 834.1),
)
"""Model, way, ms of a step on one H200 and on two that NVLink joins: 8 slots of 4 rows of 512 tokens a GPU, with remat
full; tensor parallelism has as many in all. By docs/measured/log.md."""
PACKED: tuple[Quantize, ...] = ("int8", "nf4", "nf4_double")
"""Forms of a base that one GPU holds whole."""
RANK_MEASURED = 16
HBM_BYTES_PER_S = 3.35e12
"""Memory bandwidth of an H100 SXM: how long it takes to read the weights, whatever the tokens."""
H100_BYTES = 80 * 10**9
H200_BYTES = 141 * 10**9


def number(kind: type[int] | type[float], least: float, most: float = float("inf")) -> Callable[[str], Any]:
    """Returns what reads an option that is a number from `least` to `most`."""
    what = "a whole number" if kind is int else "a number"
    bounds = f"of {least:g} or more" if most == float("inf") else f"from {least:g} to {most:g}"

    def read(given: str) -> Any:
        try:
            value = kind(given)
        except ValueError:
            value = kind(-1)
        if not least <= value <= most or value == float("inf"):
            raise argparse.ArgumentTypeError(f"given '{given}', expected {what} {bounds}")
        return value

    return read


def model_name(given: str) -> str:
    """Reads the name of a model."""
    if given not in MODELS:
        known = ", ".join(MODELS)
        raise argparse.ArgumentTypeError(f"given '{given}', expected one of {known}{nearest(given, MODELS)}")
    return given


def memory(given: str) -> int:
    """Reads bytes such as 80GB."""
    try:
        return parse_bytes(given) or 0
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"given '{given}', {error}") from None


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options.

    Raises:
        UserError: A wrong one.
    """
    parser = ScriptOptions(__doc__)
    count, positive = number(int, 1), number(float, 1e-9)
    parser.add_argument("--models", nargs="+", type=model_name, default=list(DEFAULT_MODELS), help=", ".join(MODELS))
    parser.add_argument("--gpus", nargs="+", type=count, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--rank", type=count, default=16, help="of every adapter")
    parser.add_argument("--target-modules", nargs="+", default=[ALL_LINEAR], help="names, or all-linear")
    parser.add_argument("--rows", type=count, default=4, help="of an adapter's batch")
    parser.add_argument("--length", type=count, default=512, help="of a row in tokens")
    parser.add_argument("--trials", type=count, default=60, help="adapters to tune")
    parser.add_argument("--remat", choices=("auto", *REMATS), default="auto", help="auto takes the fastest")
    parser.add_argument("--link", choices=("auto", "nvlink", "ib"), default="auto", help="auto: NVLink within a node")
    parser.add_argument("--node", type=count, default=8, help="GPUs of a node")
    parser.add_argument("--nvlink", type=positive, default=134.0, help="GB/s into a GPU")
    parser.add_argument(
        "--hidden", type=number(float, 0, 1), default=0.25, help="share of a gather that computing hides"
    )
    parser.add_argument("--infiniband", type=positive, default=400.0, help="Gb/s into a GPU")
    parser.add_argument("--memory", type=memory, default=H100_BYTES, help="of a GPU, such as 80GB")
    parser.add_argument("--peak", type=positive, default=989.0, help="dense bfloat16 TFLOP/s of a GPU")
    parser.add_argument("--mfu", type=number(float, 0.01, 1), default=0.5, help="share of it that many tokens reach")
    parser.add_argument("--half-tokens", type=number(float, 0), help="tokens that reach half of that share")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--plot", type=Path, help="an .svg or .png file to write")
    options = parser.read(arguments)
    if options.plot is not None and options.plot.suffix not in (".svg", ".png"):
        raise UserError(f"--plot: given '{options.plot}', expected a name that ends in .svg or .png")
    options.models = list(dict.fromkeys(options.models))
    options.gpus = sorted(set(options.gpus))
    return options


def cluster_of(options: argparse.Namespace) -> ClusterModel:
    """The GPUs and links that were asked for."""
    peak, half = options.peak * 1e12, options.half_tokens
    # Reading two bytes takes as long as this many tokens' two operations with them.
    half = options.mfu * peak / HBM_BYTES_PER_S if half is None else half
    across = options.infiniband / 8 * 1e9
    node = {"auto": options.node, "nvlink": sys.maxsize, "ib": 1}[options.link]
    return ClusterModel(
        peak=peak,
        mfu=options.mfu,
        half_tokens=half,
        memory_bytes=options.memory,
        head_bytes=options.memory // LOGITS_SHARE,
        node=node,
        within=options.nvlink * 1e9,
        across=across,
        hidden=options.hidden,
    )


def job_of(model: str, options: argparse.Namespace) -> AdapterLoad:
    """The adapters that were asked for, on one of the models.

    Raises:
        UserError: Modules that the model does not have.
    """
    config = MODELS[model]
    given = options.target_modules
    modules = match_targets(ALL_LINEAR if given == [ALL_LINEAR] else given, config)
    return AdapterLoad(config, options.rank, tuple(modules), options.rows, options.length, options.trials)


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """Returns everything that is printed, as JSON has it; bytes, seconds and tokens a second."""
    cluster = cluster_of(options)
    remats = REMATS if options.remat == "auto" else (options.remat,)
    fits, plans, groups = [], [], []
    for model in options.models:
        job = job_of(model, options)
        base, adapter = base_of(job.config), adapter_parameters(job.config, job.rank, job.keys)
        slots = {remat: slot_of(job.config, job.rank, job.keys, remat, job.rows * job.length) for remat in REMATS}
        for gpus in options.gpus:
            held = base_on_gpu(base, gpus)
            room = (cluster.memory_bytes, held)
            fit = {remat: slots_that_fit(*room, slot, cluster.head_bytes) for remat, slot in slots.items()}
            sizes = {remat: asdict(slot) for remat, slot in slots.items()}
            known = {"base_bytes": base.total, "base_on_gpu_bytes": held, "adapter_parameters": adapter}
            fits.append({"model": model, "gpus": gpus, **known, "slot_bytes": sizes, "slots_on_gpu": fit})
            for way in WAYS:
                plan, split = best(way, job, cluster, gpus, remats), best_in_groups(way, job, cluster, gpus, remats)
                where = {"model": model, "gpus": gpus, "way": way}
                plans.append({**where, "plan": None if plan is None else as_numbers(plan)})
                groups.append({**where, "tokens_per_s": split and split[0], "group": split and split[1]})
    packed = [_packed(job_of(model, options), model, cluster, form) for model in options.models for form in PACKED]
    found = {"fits": fits, "packed": packed, "plans": plans, "groups": groups}
    return {"cluster": asdict(cluster), **found, **checks(cluster)}


def _packed(job: AdapterLoad, model: str, cluster: ClusterModel, form: Quantize) -> dict[str, Any]:
    """Returns what a GPU that holds a whole packed base has room for."""
    base = base_of(job.config, forms=forms_of(job.config, PACKS[form]))
    held, tokens = base_on_gpu(base, 1), job.rows * job.length
    slots = {remat: slot_of(job.config, job.rank, job.keys, remat, tokens) for remat in REMATS}
    room = (cluster.memory_bytes, held)
    fit = {remat: slots_that_fit(*room, slot, cluster.head_bytes) for remat, slot in slots.items()}
    sizes = {"base_bytes": base.total, "dense_bytes": 2 * base.dense, "base_on_gpu_bytes": held}
    return {"model": model, "form": form, **sizes, "slots_on_gpu": fit}


def as_numbers(plan: PredictedSpeed) -> dict[str, Any]:
    """A plan for JSON."""
    return {**asdict(plan), "tokens_per_s": plan.tokens_per_s}


def checks(cluster: ClusterModel) -> dict[str, list[dict[str, Any]]]:
    """Compares with the steps that were measured, at the peak, shares and NVLink that were given."""
    one = replace(cluster, memory_bytes=H100_BYTES, head_bytes=H100_BYTES // LOGITS_SHARE)
    two = replace(cluster, memory_bytes=H200_BYTES, head_bytes=H200_BYTES // LOGITS_SHARE, node=2)
    return {
        "checks": [_on_one(one, *step) for step in MEASURED],
        "pairs": [_on_two(two, *step) for step in MEASURED_ON_TWO],
    }


def _on_one(
    cluster: ClusterModel, model: str, slots: int, rows: int, length: int, tokens_per_s: float, gib: float
) -> dict[str, Any]:
    job = _measured_job(model, slots, rows, length)
    plan = adapter_parallel(job, cluster, 1, "none")
    assert plan is not None
    slot = slot_of(job.config, job.rank, job.keys, "none", rows * length)
    step = needed_bytes(0, replace(slot, states=0), slots, cluster.head_bytes) / 2**30
    measured = {"tokens_per_s": tokens_per_s, "step_gib": gib}
    predicted = {"tokens_per_s": plan.tokens_per_s, "step_gib": step}
    shape = {"model": model, "slots": slots, "rows": rows, "length": length}
    return {**shape, "measured": measured, "predicted": predicted}


def _on_two(cluster: ClusterModel, model: str, way: str, one_ms: float, two_ms: float) -> dict[str, Any]:
    """Compares how many times as long as on one GPU a step takes."""
    job = _measured_job(model, 8, 4, 512)
    alone = adapter_parallel(job, cluster, 1, "full")
    if way == "tensor":
        plan = tensor_parallel(job, cluster, 2, "full", job.trials)
    else:
        both = replace(job, trials=2 * job.trials)
        plan = adapter_parallel(both, cluster, 2, "full") if way == "base sharded" else alone
    assert alone is not None and plan is not None
    measured, predicted = ({"times": two_ms / one_ms}, {"times": plan.step_s / alone.step_s})
    return {
        "model": model,
        "way": way,
        "one_ms": one_ms,
        "two_ms": two_ms,
        "measured": measured,
        "predicted": predicted,
    }


def _measured_job(model: str, slots: int, rows: int, length: int) -> AdapterLoad:
    config = MODELS[model]
    return AdapterLoad(config, RANK_MEASURED, tuple(projections(config)), rows, length, slots)


def main() -> int:
    """Prints what is predicted."""
    options = parse()
    found = predict(options)
    print(json.dumps(found, indent=2) if options.json else tables(found, options))
    if options.plot is not None:
        write_plot(draw(found), options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
