"""What computes nothing starts at once: help, status, reports, replays and questions to a queue import no JAX.

A task is submitted without a device: its rows and shapes are read, by packages that import JAX; nothing is computed.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from played_runs import made_up, play, write
from queues import put

from altojax import cli as altojax_cli
from altojax.early_exit.rules import Rules
from jaxrun.store.journal import Journal
from twistjax import cli as twistjax_cli

HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "transformers", "torch")
TINY = Path(__file__).parents[2] / "configs" / "tiny"
TASK = """
output_dir: {folder}/run
model: {{model_name_or_path: {base}, random_init: true}}
search: {{train_samples: 8}}
tasks: [{{name: sums, data: {{train: {folder}/rows.jsonl, validation_samples: 4, max_length: 32}}}}]
"""
VERBS = {"altojax": altojax_cli.VERBS, "twistjax": twistjax_cli.VERBS}
SCRIPT = f"""
import sys
from {{program}}.cli import main
for words in {{lines!r}}:
    assert main(words) == 0, words
    print(words, [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def imported(program: str, *lines: list[str]) -> list[str]:
    """Runs command lines in one new process; returns each with the heavy packages that are imported by then."""
    script = SCRIPT.format(program=program, lines=lines)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def nothing(*lines: list[str]) -> list[str]:
    return [f"{words} []" for words in lines]


@pytest.mark.parametrize("program", VERBS)
def test_help_needs_none(program):
    lines = [["--version"], ["--help"], *([verb, "--help"] for verb in VERBS[program])]
    assert imported(program, *lines) == nothing(*lines)


def test_a_run_is_looked_at_without(tmp_path):
    rules, random = Rules(), np.random.default_rng(0)
    trials = made_up(rules, random, 3)
    losses = {one.name: random.uniform(1, 2, (3, len(one.eval_steps))) for one in trials}
    run = str(write(tmp_path / "run", rules, trials, *play(rules, trials, losses)))
    lines = [["status", run], ["report", run], ["replay", run]]
    assert imported("altojax", *lines) == nothing(*lines)


def test_a_training_is_looked_at_without(tmp_path):
    with Journal.open(tmp_path / "run", config_text="output_dir: x\n", identity="d") as journal:
        journal.set("plan", {"rounds": 4})
    lines = [["status", str(tmp_path / "run")], ["report", str(tmp_path / "run")]]
    assert imported("twistjax", *lines) == nothing(*lines)


def test_a_queue_is_asked_without(tmp_path):
    put(tmp_path / "queue", tmp_path / "run")
    lines = [["queue", f"queue={tmp_path / 'queue'}"]]
    assert imported("altojax", *lines) == nothing(*lines)


def test_a_task_is_submitted_without_a_device_and_refused_without_the_packages(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n' * 8)
    config = tmp_path / "task.yaml"
    config.write_text(TASK.format(folder=tmp_path, base=TINY))
    queue = f"queue={tmp_path / 'queue'}"
    script = f"""
import sys
from altojax.cli import main
assert main(["submit", {str(config)!r}, {queue!r}, "slots=none"]) == 2
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
assert main(["submit", {str(config)!r}, {queue!r}]) == 0
from jax._src.xla_bridge import backends_are_initialized
print(backends_are_initialized(), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[1:] == ["[]", "False"]


def test_a_name_of_the_api_does_import_them():
    script = f"import sys, altojax.run.tuner; print([name for name in {HEAVY[:6]} if name not in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
