"""Compares what a run is predicted to take of a device with what its compiled step says, and with what it took.

    python scripts/devices/check_memory.py [--bases smollm2-135m llama-3.1-8b] [--budgets 24GiB 80GiB all]

Bases have random weights; every case is a process of its own, since a device's peak is that of a process. Needs an
accelerator for the last column: a CPU does not say what it took.
"""

from jaxrun.process.script import run_script

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxrun.config.script_options import ScriptOptions

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHAPES = ("smollm2-135m", "llama-3.2-1b", "llama-3.1-8b")


def write_case(folder: Path, base: str, *, rank: int, trials: int, length: int) -> Path:
    """Writes a base without weights, rows and a config, and returns the config's path."""
    model = folder / "base"
    shutil.copytree(CONFIGS / "tiny", model)
    shutil.copy(CONFIGS / "shapes" / base / "config.json", model)
    text = "".join(json.dumps({"text": "abcdefgh " * (2 * length)}) + "\n" for _ in range(64))
    (folder / "rows.jsonl").write_text(text)
    run = {
        "output_dir": str(folder / "run"),
        "model": {"model_name_or_path": str(model), "random_init": True, "dtype": "bfloat16"},
        "search": {"lora_rank": rank, "batch_size": 4, "learning_rate": [1e-5 * (1 + i) for i in range(trials)]},
        "tasks": [{"name": "rows", "data": {"train": str(folder / "rows.jsonl"), "max_length": length}}],
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(run))
    return path


def measure(path: str, budget: str) -> dict[str, float]:
    """Takes a training step of all slots and one evaluation, and returns bytes, predicted and found."""
    import jax

    from altojax.config.tune_config import TuneConfig
    from altojax.device.batch import Part, next_part
    from altojax.run.load_base import build_executor, course_of, largest_step, place
    from altojax.run.prepare import new_trial, prepare
    from jaxrun.config.config import load_config

    config = load_config(TuneConfig, path, [] if budget == "all" else [f"memory_budget={budget}"])
    base = prepare(config).bases[0]
    begun = time.perf_counter()
    placed = place(config, base)
    found, variant = placed.expected()
    predict_s = time.perf_counter() - begun
    executor = build_executor(placed, variant=variant)
    loads, _ = course_of(base, placed.slots, placed.layout)
    shape = largest_step(base, loads, executor.sharding.groups, executor.sharding.own_slots)
    executor.programs.get("train", shape)
    parts: list[Part] = []
    for slot, trial in enumerate(base.trials[: placed.slots]):
        executor.put(slot, new_trial(base, trial), trial.hyper())
        more = [*parts, next_part(slot, trial.stream, trial.seed, 0, 0)]
        if shape.holds(executor.programs.need(more)):
            parts = more
    executor.keep(list(range(placed.slots)))
    jax.block_until_ready(executor.train(parts, shape))
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "slots": placed.slots,
        "rows": shape.rows,
        "length": shape.length,
        "remat": variant.remat.remat,
        "budget": placed.budget_bytes,
        "resident": found.resident,
        "resident_found": executor.resident_bytes(),
        "step": found.training,
        "step_found": executor.programs.stats().done[-1].temp_bytes,
        "peak": found.peak,
        "peak_found": stats.get("peak_bytes_in_use", 0),
        "predict_s": round(predict_s, 1),
    }


def main(argv: list[str] | None = None) -> int:
    """Prints a line a case."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("--bases", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--budgets", nargs="+", default=["24GiB", "80GiB", "all"])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    given = parser.read(argv)
    if given.case:
        print(json.dumps(measure(*given.case)))
        return 0
    sizes = "resident GiB (found)  step GiB (found)   peak GiB (found)   ratio"
    print(f"{'base':13} {'budget':8} slots  step         remat  {sizes}")
    failed = 0
    for base in given.bases:
        with tempfile.TemporaryDirectory() as folder:
            path = write_case(Path(folder), base, rank=given.rank, trials=given.trials, length=given.length)
            for budget in given.budgets:
                done = subprocess.run(
                    [sys.executable, __file__, "--case", str(path), budget], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    failed += 1
                    print(f"{base:13} {budget:8} failed: {done.stderr.strip().splitlines()[-1][:300]}", flush=True)
                    continue
                one = json.loads(done.stdout.splitlines()[-1])
                pairs = [
                    f"{one[k] / 2**30:7.3f} ({one[k + '_found'] / 2**30:7.3f})" for k in ("resident", "step", "peak")
                ]
                ratio = one["step"] / one["step_found"]
                print(
                    f"{base:13} {budget:8} {one['slots']:5}  {one['rows']:4} × {one['length']:4}  {one['remat']:5}  "
                    f"{'  '.join(pairs)}  {ratio:.2f}  {one['predict_s']} s",
                    flush=True,
                )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(run_script(main))
