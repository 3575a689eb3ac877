"""Tasks and workers for the tests of engines: a real one of a tiny model, and one that does what a file says."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from altojax.cluster.engines.engine import Engine, Order, Report
from altojax.cluster.scheduling.resources.nodes import Gpus

ROOT = Path(__file__).parents[2]
TASK = """
output_dir: {folder}/run
model: {{model_name_or_path: {base}, random_init: true, dtype: float32}}
slots: 2
mesh: {mesh}
eval_samples: 0.2
checkpoint_samples: 0.04
search:
  configurations:
    - {{lora_rank: 4, batch_size: 2, learning_rate: 3.0e-3}}
    - {{lora_rank: 2, batch_size: 2, learning_rate: 1.0e-2}}
  target_modules: [q_proj]
  train_samples: {samples}
early_exit: {{preset: none}}
tasks:
  - {{name: sums, data: {{train: {folder}/sums.jsonl, validation_samples: 6, max_length: 32, chat_template: false}}}}
"""
DUMMY = """
import os, signal, sys, time
from pathlib import Path

folder, attempt = Path(sys.argv[1]), int(sys.argv[2])
write, rename = (lambda path, text: path.write_text(text)), os.replace

def say(outcome, code):
    write(folder / "said", '{"code": %d, "outcome": "%s"}' % (code, outcome))
    rename(folder / "said", folder / f"attempt-{attempt}.json")
    sys.exit(code)

signal.signal(signal.SIGTERM, lambda *_: say("halted", 130))
write(folder / "began", f"{attempt} {os.environ['JAX_PLATFORMS']}")
print("begun", flush=True)
exec((folder / "does.py").read_text())
"""
"""A worker that starts fast: it runs the task's does.py, and saves when it is asked to stop."""


def make_order(folder: Path, gpus: Gpus, *, attempt: int = 1, samples: int = 40, mesh: str = "null") -> Order:
    """An order for a task of two trials of a tiny model."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ROOT / "configs" / "tiny"
    (folder / "task.yaml").write_text(TASK.format(folder=folder, base=base, samples=samples, mesh=mesh))
    return Order(folder.name, attempt, folder, gpus)


def dummy_order(folder: Path, gpus: Gpus, does: str, *, attempt: int = 1) -> Order:
    """An order for a worker that runs a few lines of Python, which may ``say(outcome, code)``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "does.py").write_text(does)
    return Order(folder.name, attempt, folder, gpus)


def dummy_command() -> Sequence[str]:
    """The command of that worker."""
    return [sys.executable, "-S", "-c", DUMMY]


def wait_for(what: Callable[[], bool], seconds: float = 120.0) -> None:
    """Returns once something holds."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to be in time"
        time.sleep(0.02)


def reports_of(engine: Engine, count: int = 1, seconds: float = 120.0) -> list[Report]:
    """Polls an engine until it has reported so many ends."""
    reports: list[Report] = []

    def enough() -> bool:
        reports.extend(engine.poll())
        return len(reports) >= count

    wait_for(enough, seconds)
    assert engine.poll() == []
    return reports
