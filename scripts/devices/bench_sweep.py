"""A whole sweep at a real size against the step of the benchmark and against PEFT, each on this GPU alone.

    python scripts/devices/bench_sweep.py --data gsm8k.train.jsonl [--model llama-3.1-8b] [--configurations 16]
        [--parts base run step peft liger] [--samples 256] [--processes 1 2 4] [--out runs/bench-sweep] [key=value ...]

Hardware: one GPU; 8B takes an 80 GB one. Random weights of the model's shape with the tokenizer of --tokenizer, rate x
rank x batch size, no early exit. Parts are minutes each; what --out has already is not done again, and the table of all
that it has is printed at the end of every call.

base    the weights as a plain Hugging Face folder in bfloat16, which all arms read
run     `altojax tune`, with key=value for it; --name tells runs apart; --seconds stops it as Ctrl-C does
step    the step of bench_step.py with as many slots, rows and tokens as the sweep would have at once, by both kernels
peft    PEFT and the Trainer with so many processes at a time as --processes says, by crowd_with_peft.py
liger   the same with Liger's kernels

Text tokens a second are those of rows, without padding. `whole` of PEFT is its steps, evaluations and set-up at the
speed of a few seconds each.
"""

from jaxrun.process.script import run_script

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.table import Table

from altojax.config.tune_config import TuneConfig
from jaxrun.config.script_options import ScriptOptions

ROOT = Path(__file__).resolve().parents[2]
RATES, RANKS, BATCHES = (1e-4, 2e-4, 4e-4, 8e-4, 5e-5, 3e-4, 6e-4, 1.5e-3), (16, 64), (1, 2, 4, 8)
VALIDATION, EVALUATIONS = 64, 4
PARTS = ("base", "run", "step", "peft", "liger")


def main() -> int:
    """Does the parts in order and prints one table."""
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        name = options.name if part == "run" else part
        path = options.out / f"{options.model}-{name}.json"
        if part == "base":
            write_base(options)
        elif part == "step" or not path.is_file():
            found = {"run": run, "step": step, "peft": crowd, "liger": crowd}[part](options, part)
            path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    Console(width=150).print(table(options))
    return 0


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = ScriptOptions(__doc__, TuneConfig)
    parser.add_argument("--data", type=Path, required=True, help='rows of {"prompt", "completion"}')
    parser.add_argument("--model", default="llama-3.1-8b", help="a shape of configs/shapes")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--configurations", type=int, choices=range(1, 65), metavar="N", default=16, help="1 to 64")
    parser.add_argument("--samples", type=int, default=256, help="of each configuration")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4], help="of PEFT at a time")
    parser.add_argument("--window-s", type=float, default=4.0, help="seconds in which PEFT's steps are counted")
    parser.add_argument("--name", default="run", help="of the run")
    parser.add_argument("--seconds", type=float, help="after which the run is stopped")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-sweep"))
    return parser.read()


def grid(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the configurations, of which every batch size has as many as any other."""
    every = [
        {"learning_rate": rate, "lora_rank": rank, "batch_size": batch}
        for rate in RATES
        for rank in RANKS
        for batch in BATCHES
    ]
    return every[: options.configurations]


def tune_config(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the run."""
    data = {"train": str(options.data.resolve()), "max_length": 384, "truncation": "drop", "chat_template": False}
    return {
        "output_dir": str(options.out / f"{options.model}-{options.name}"),
        "model": {"model_name_or_path": str(options.out / f"base-{options.model}"), "dtype": "bfloat16"},
        "search": {"configurations": grid(options), "train_samples": options.samples},
        "early_exit": {"preset": "none"},
        "eval_samples": 1 / EVALUATIONS,
        "checkpoint_samples": 100_000_000,
        "tasks": [{"name": "rows", "data": {**data, "validation_samples": VALIDATION}}],
    }


def write_base(options: argparse.Namespace) -> None:
    """Writes the weights where every arm reads them."""
    import jax.numpy as jnp
    from flax import nnx
    from full_slots import SHAPES

    from jaxlm.files.hf import save_model
    from jaxlm.files.tokenizer import load_tokenizer
    from jaxlm.models.transformer import Transformer

    folder = options.out / f"base-{options.model}"
    if (folder / "config.json").is_file():
        return
    config = SHAPES[options.model]
    kinds: dict[str, Any] = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, "remat": "none", "scan_layers": True}
    model = nnx.jit(lambda: Transformer(config, rngs=nnx.Rngs(0), **kinds))()
    # From the device a layer at a time: out of NumPy's arrays every layer would take its whole stack there first.
    save_model(folder, config, model, dtype=jnp.bfloat16, tokenizer=load_tokenizer(options.tokenizer))


def run(options: argparse.Namespace, _: str) -> dict[str, Any]:
    """Runs the sweep as a user does; returns its times and tokens."""
    config = options.out / f"{options.model}-{options.name}.yaml"
    config.write_text(json.dumps(tune_config(options)), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "altojax", "tune", str(config), *options.overrides]
    begun = time.perf_counter()
    process = subprocess.Popen(command)
    try:
        process.wait(options.seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
    return {"exit": process.returncode, "seconds": time.perf_counter() - begun, "clock": clock(options)}


def clock(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the run's own times."""
    from jaxrun.store.journal import Journal

    with Journal.read(Path(tune_config(options)["output_dir"])) as journal:
        return dict(journal.get("clock", {}))


def step(options: argparse.Namespace, _: str) -> dict[str, Any]:
    """Times the benchmark's step of the whole grid at once."""
    from bench_step import adapted
    from full_slots import SHAPES

    lengths = text_lengths(options)
    slots, mean = options.configurations, sum(lengths) / len(lengths)
    rows = round(sum(one["batch_size"] for one in grid(options)) / slots)
    length = max(64, round(mean / 64) * 64)
    kinds = {"slots": slots, "rows": rows, "length": length, "rank": max(RANKS), "targets": 1.0, "steps": 8}
    found = {}
    for remat, scan in (("none", False), ("full", True)):
        chosen = SimpleNamespace(**kinds, remat=remat, scan=scan, profile=None, live=())
        ms, compile_s, temp, _ = adapted(SHAPES[options.model], chosen, None)  # type: ignore[arg-type]
        found[f"remat {remat}, layers {'scanned' if scan else 'in place'}"] = {
            "ms": ms,
            "tokens_per_s": slots * rows * length / ms * 1e3,
            "compile_s": compile_s,
            "temp_gib": temp / 2**30,
        }
        print(remat, found, file=sys.stderr, flush=True)
    return {"shape": kinds, "steps": found}


def text_lengths(options: argparse.Namespace) -> list[int]:
    """Returns the tokens of every row."""
    return [len(row.tokens) for row in prepared(options).data["rows"].train]


def prepared(options: argparse.Namespace) -> Any:
    """Returns the run, prepared."""
    from altojax.run.prepare import prepare
    from jaxrun.config.config import check_config

    return prepare(check_config(TuneConfig, tune_config(options), "bench_sweep", []))


def crowd(options: argparse.Namespace, part: str) -> dict[str, Any]:
    """Has PEFT's processes train one configuration of every batch size; returns what the whole grid would take."""
    ready, out = prepared(options), options.out / f"{options.model}-{part}.crowd.json"
    trials, data = ready.bases[0].trials, ready.data["rows"]
    stream = trials[0].stream
    met = [row for number in range(stream.total_steps) for row in stream.effective_batch(number)]
    rows = options.out / "rows.json"
    rows.write_text(
        json.dumps({"train": [as_row(row) for row in met], "validation": [as_row(row) for row in data.validation]})
    )
    configurations = [
        {
            "name": f"batch {batch}", "rank": RANKS[0], "learning_rate": RATES[0], "batch_size": batch, "steps": 0,
            "warmup_steps": 0, "weight_decay": 0.0, "lr_scheduler_type": "constant", "max_grad_norm": 1.0, "seed": 0,
        }
        for batch in BATCHES
    ]  # fmt: skip
    job = {
        "model": str(options.out / f"base-{options.model}"), "rows": {"rows": str(rows)}, "liger": part == "liger",
        "configurations": configurations, "processes": options.processes, "seconds": options.window_s,
    }  # fmt: skip
    path = options.out / f"{options.model}-{part}.job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, str(ROOT / "scripts/reproduce/crowd_with_peft.py"), str(path), str(out)]
    code = subprocess.run(command, check=False).returncode
    stages = json.loads(out.read_text())["stages"] if out.is_file() else []
    return {"exit": code, "stages": stages, "whole": {one["processes"]: peft_s(options, one) for one in stages}}


def as_row(row: Any) -> dict[str, list[int]]:
    """Returns a row as PEFT's side reads it."""
    labels = [int(token) if target else -100 for token, target in zip(row.tokens, row.targets, strict=True)]
    return {"ids": row.tokens.tolist(), "labels": labels}


def peft_s(options: argparse.Namespace, stage: dict[str, Any]) -> float:
    """Returns the seconds of the whole grid at the speed that so many processes at a time have."""
    pace = {one["batch_size"]: one["step_s"] for one in stage["steps"]}
    each = [
        stage["setup_s"] + EVALUATIONS * stage["evaluation_s"] + options.samples / batch * pace[batch]
        for batch in (one["batch_size"] for one in grid(options))
    ]
    return sum(each) / stage["processes"]


def table(options: argparse.Namespace) -> Table:
    """Returns all that is known."""
    names = ("arm", "whole s", "to first step s", "text tokens/s training", "whole", "computed/text", "where time went")
    found = Table(*names)
    for path in sorted(options.out.glob(f"{options.model}-*.json")):
        name = path.stem.removeprefix(f"{options.model}-")
        told = json.loads(path.read_text())
        for row in rows_of(told):
            found.add_row(f"{name}{row[0]}", *row[1:])
    return found


def rows_of(told: dict[str, Any]) -> list[Sequence[str]]:
    """Returns the lines of one arm."""
    if times := told.get("clock"):
        parts = {name: times[f"{name}_s"] for name in ("training", "compile", "evaluation", "exchange", "checkpoint")}
        parts["rest"] = told["seconds"] - sum(parts.values())
        went = ", ".join(f"{name} {seconds:.0f}" for name, seconds in parts.items())
        first, computed = times["first_step_s"], 1 / (1 - times["padding"])
        speeds = f"{times['tokens_per_s']:,.0f}", f"{times['tokens'] / told['seconds']:,.0f}"
        ended = f"exit {told['exit']}, remat {times['remat']}"
        return [("", f"{told['seconds']:.0f}", f"{first:.0f}", *speeds, f"{computed:.2f}", f"{went} ({ended})")]
    if "steps" in told:
        shape = told["shape"]
        rows = f"{shape['slots']} x {shape['rows']} x {shape['length']}"
        return [
            (
                f", {name}",
                *("", "", f"{one['tokens_per_s']:,.0f}", "", "1"),
                f"{one['ms']:.0f} ms of {rows}, compiled in {one['compile_s']:.0f} s, {one['temp_gib']:.1f} GiB",
            )
            for name, one in told["steps"].items()
        ]
    return [(f", {number} at a time", f"{seconds:.0f}") for number, seconds in told.get("whole", {}).items()]


if __name__ == "__main__":
    sys.exit(run_script(main))
