"""Checks whole runs on this machine's first two GPUs: interrupted, killed, queued, and against one GPU.

    python scripts/devices/check_mesh_runs.py [--parts resume hosts engine serve twist] [--out FOLDER]

resume    16 trials in float32 on two GPUs, stopped by Ctrl-C, resumed on one; losses against a run on one alone
hosts     the same run as two processes with a GPU each; one is killed, the other ends, both go on to the end
engine    `scripts/engines/try_engine.py local`: an attempt taken over and stopped, one killed, one to the end
serve     two tenants' tasks in one queue, on a GPU each at the same time
twist     four workers of twistjax on two GPUs and on one: tokens a second

Prints one table; ends with 1 if a check fails. `scripts/devices/check_mesh.py` has kernels, laws and steps.
"""

from jaxrun.process.script import run_script

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from check_mesh import Found
from full_slots import SHAPES
from rich.console import Console
from rich.table import Table

from jaxlm.files.hf_config import to_hf
from jaxrun.config.script_options import ScriptOptions
from jaxrun.store.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
SAME = 2e-5
"""Largest difference of a validation loss in float32, by sums in another order over a whole run."""
WAIT_S = 240.0
TASK = """
output_dir: {out}
model: {{model_name_or_path: {root}/configs/tiny, random_init: true, dtype: float32, kernels: xla}}
slots: 8
checkpoint_samples: 0.05
eval_samples: 0.1
early_exit: {{preset: none}}
search:
  lora_rank: [2, 4, 8, 16]
  learning_rate: [1.0e-4, 3.0e-4, 1.0e-3, 3.0e-3]
  batch_size: 2
  train_samples: 400
tasks:
  - {{name: sums, data: {{train: {rows}, validation_samples: 6, max_length: 32}}}}
"""
TWIST = """
output_dir: {out}
model: {{model_name_or_path: {base}, random_init: true, dtype: bfloat16}}
data: {{train: {text}, validation_samples: 16, max_length: 256}}
subnetworks: {{workers: 4, kappa: 0.5}}
training: {{local_steps: 10, batch_size: 16, train_samples: 5120, learning_rate: 3.0e-4}}
evaluation: {{every: 100, tickets: 1}}
"""


def main() -> int:
    """Runs the parts and prints one table."""
    parts: dict[str, Callable[[Path], list[Found]]]
    parts = {"resume": resume, "hosts": hosts, "engine": engine, "serve": serve, "twist": twist}
    parser = ScriptOptions(__doc__)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--out", type=Path, default=Path("runs/check-mesh-runs"))
    options = parser.read()
    table, fine = Table("part", "what", "found", ""), True
    for part in options.parts:
        folder, begun = (options.out / part).resolve(), time.perf_counter()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            found = parts[part](folder)
        except (subprocess.SubprocessError, TimeoutError, OSError, ValueError) as error:
            found = [Found("went wrong", f"{type(error).__name__}: {error}"[:300], False)]
        for one in [*found, Found("seconds", f"{time.perf_counter() - begun:.0f}")]:
            table.add_row(part, one.what, one.value, "" if one.fine else "WRONG")
        fine &= all(one.fine for one in found)
    Console(width=150).print(table)
    return 0 if fine else 1


def resume(folder: Path) -> list[Found]:
    """Parked on two GPUs, resumed on one."""
    alone, moved = task(folder / "alone.yaml", folder / "alone"), task(folder / "moved.yaml", folder / "moved")
    end(start(folder, "alone", ["altojax", "tune", alone, "mesh={adapter: 1}"]), 0)
    first = start(folder, "two", ["altojax", "tune", moved, "mesh={adapter: 2}"])
    until(lambda: checkpoints(folder / "moved") >= 2, "two checkpoints on two GPUs")
    first.send_signal(signal.SIGINT)
    end(first, 130)
    end(start(folder, "one", ["altojax", "tune", moved], CUDA_VISIBLE_DEVICES="0"), 0)
    return [devices(folder / "moved"), compared(folder / "alone", folder / "moved")]


def hosts(folder: Path) -> list[Found]:
    """A process lost of two that have a GPU each."""
    config = task(folder / "hosts.yaml", folder / "run")

    def both(name: str) -> list[subprocess.Popen[bytes]]:
        shared = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:12455", "JAX_NUM_PROCESSES": "2"}
        return [
            start(
                folder,
                f"{name}-{number}",
                ["altojax", "tune", config],
                **shared,
                JAX_PROCESS_ID=str(number),
                CUDA_VISIBLE_DEVICES=str(number),
            )
            for number in range(2)
        ]

    leader, follower = both("first")
    until(lambda: checkpoints(folder / "run") >= 2, "two checkpoints of two processes")
    follower.kill()
    begun = time.perf_counter()
    code = leader.wait(WAIT_S)
    ended = time.perf_counter() - begun
    for one in both("second"):
        end(one, 0)
    alone = task(folder / "alone.yaml", folder / "alone")
    end(start(folder, "alone", ["altojax", "tune", alone, "mesh={adapter: 1}"]), 0)
    lost = Found("the leader after its follower was killed: seconds, exit code", f"{ended:.0f}, {code}", code != 0)
    return [lost, devices(folder / "run"), compared(folder / "alone", folder / "run")]


def engine(folder: Path) -> list[Found]:
    """The local engine with two GPUs."""
    command = [sys.executable, str(ROOT / "scripts" / "engines" / "try_engine.py"), "local"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * WAIT_S, env=environment(), check=False)
    said = [line.removeprefix("try_engine: ") for line in done.stdout.splitlines() if line.startswith("try_engine")]
    return [Found("last line", said[-1] if said else done.stderr[-200:], done.returncode == 0)]


def serve(folder: Path) -> list[Found]:
    """Two tenants, a GPU each."""
    queue = folder / "queue"
    for tenant in ("speech", "search"):
        config = task(folder / f"{tenant}.yaml", folder / tenant)
        end(start(folder, tenant, ["altojax", "submit", config, f"queue={queue}", f"queue.tenant={tenant}"]), 0)
    words = ["altojax", "serve", f"queue={queue}", "engine.gpus=2", "until_idle=true", "page=null"]
    end(start(folder, "serve", words), 0)
    listed = start(folder, "list", ["altojax", "queue", f"queue={queue}", "--json"])
    end(listed, 0)
    jobs = json.loads((folder / "list.log").read_text())["jobs"]
    ended = [one["status"] for one in jobs]
    spans = [(one["started_s"], one["ended_s"]) for one in jobs]
    together = max(begin for begin, _ in spans) < min(stop for _, stop in spans)
    return [
        Found("what became of two tenants' tasks", ", ".join(ended), set(ended) == {"ended"}),
        Found("at the same time", str(together), together),
    ]


def twist(folder: Path) -> list[Found]:
    """Four workers on two GPUs, and on one."""
    base = folder / "base"
    shutil.copytree(ROOT / "configs" / "tiny", base)
    (base / "config.json").write_text(json.dumps(to_hf(SHAPES["smollm2-135m"])))
    text = folder / "text.txt"
    text.write_text("\n".join(path.read_text() for path in sorted(ROOT.glob("docs/*.md"))) * 4)
    speeds = {}
    for name, gpus in (("two", "0,1"), ("one", "0")):
        config = folder / f"{name}.yaml"
        config.write_text(TWIST.format(out=folder / name, base=base, text=text))
        end(start(folder, f"train-{name}", ["twistjax", "train", str(config)], CUDA_VISIBLE_DEVICES=gpus), 0)
        with Journal.read(folder / name) as journal:
            clock = journal.get("clock")
            speeds[name] = clock["tokens"] / clock["training_s"]
    ratio = speeds["two"] / speeds["one"]
    return [Found("tokens/s on two GPUs, on one, ratio", f"{speeds['two']:,.0f}, {speeds['one']:,.0f}, {ratio:.2f}")]


def task(config: Path, out: Path) -> str:
    """Writes a run of 16 trials and its rows."""
    rows = config.with_suffix(".jsonl")
    rows.write_text("".join(f'{{"prompt": "{a}+{b}=", "completion": "{a + b}"}}\n' for a in range(8) for b in range(8)))
    config.write_text(TASK.format(out=out, root=ROOT, rows=rows))
    return str(config)


def environment(**more: str) -> dict[str, str]:
    """What programs are started with: this checkout, and a part of each GPU's memory, for others run beside."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.1",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",  # of float32, which would else be rounded to tf32
        **more,
    }


def start(folder: Path, name: str, words: list[str], **more: str) -> "subprocess.Popen[bytes]":
    """Starts a verb of one of the programs; what it says is in ``NAME.log``."""
    with (folder / f"{name}.log").open("wb") as log:
        command = [sys.executable, "-m", words[0], *words[1:]]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment(**more))


def end(process: "subprocess.Popen[bytes]", code: int) -> None:
    """Waits for a program and checks how it ended."""
    found = process.wait(2 * WAIT_S)
    if found != code:
        raise ValueError(f"{' '.join(map(str, process.args[2:5]))}: exit code {found}, expected {code}")  # type: ignore[index]


def until(what: Callable[[], bool], words: str) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + WAIT_S
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{words}: not after {WAIT_S:.0f} s")
        time.sleep(0.1)


def checkpoints(run: Path) -> int:
    """Returns how many evaluations a run has written down, of which a checkpoint follows every few."""
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) // 64 if path.exists() else 0


def devices(run: Path) -> Found:
    """Says on what each part of a run trained."""
    with Journal.read(run) as journal:
        starts = [(event.payload["device"], event.tick) for event in journal.events("run_start")]
    told = ", ".join(f"{device} from tick {tick}" for device, tick in starts)
    return Found("trained on", told, len(starts) >= 2 and starts[-1][1] > 0)


def compared(one: Path, other: Path) -> Found:
    """Compares the trials of two runs."""

    def losses(run: Path) -> dict[str, float]:
        with (run / "trials.csv").open(newline="") as file:
            return {row["trial"]: float(row["best_val_loss"]) for row in csv.DictReader(file)}

    first, second = losses(one), losses(other)
    off = max(abs(first[name] - second[name]) for name in first)
    return Found("best losses of 16 trials against one GPU alone, largest difference", f"{off:.1e}", off <= SAME)


if __name__ == "__main__":
    sys.exit(run_script(main))
