"""Kills `altojax tune` at random instants, again and again, and compares what comes out with a run left alone.

    python scripts/kill_at_random.py CONFIG [OVERRIDE ...] [--kills 100] [--seed 0] [--out runs/killed]

Every run is started again with the same command until it ends, then compared: its decisions and the bits of every
adapter must be those of the first run, which nobody killed. Exit code 1 and the first difference if they are not.
Meant for a CPU, where XLA's bits repeat.
"""

import ctrl_c

import argparse
import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.files import digest_of
from harness.journal import Journal

Outcome = tuple[list[str], dict[str, str]]


def main() -> int:
    """Runs one run alone and others under fire until the kills are spent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/killed"))
    options = parser.parse_args()
    folder = options.out / "whole"
    arguments = [options.config, *options.overrides]
    alone = tune(*arguments, f"output_dir={folder}", "overwrite=true")
    _, errors = alone.communicate()
    if alone.returncode:
        print(errors, end="", file=sys.stderr)
        return alone.returncode
    whole = outcome(folder)
    chance = random.Random(options.seed)
    kills = midway = runs = 0
    while kills < options.kills:
        folder = options.out / f"run{runs}"
        fired, further = run_under_fire([*arguments, f"output_dir={folder}"], folder, chance, options.kills - kills)
        kills, midway, runs = kills + fired, midway + further, runs + 1
        print(f"run {runs}: {fired} kills, {further} of them after a new checkpoint", flush=True)
        if difference := first_difference(whole, outcome(folder)):
            print(f"kill_at_random: {folder} differs: {difference}", file=sys.stderr)
            return 1
    print(
        f"{kills} kills, {midway} of them after a new checkpoint, {runs} runs: decisions and bits are those of one run"
    )
    return 0


def run_under_fire(
    arguments: Sequence[str],
    folder: Path,
    chance: random.Random,
    kills: int,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, int]:
    """Starts a run as often as it takes to end it, killing it at most `kills` times.

    Four kills of five wait for a checkpoint newer than the start's, so that the run gets on; the others come at any
    time, while it starts too.

    Returns:
        How many kills there were, and how many of them came after a new checkpoint.

    Raises:
        RuntimeError: The run ended by itself with a code that is not 0.
    """
    fired = further = 0
    while True:
        before = checkpoints(folder)
        process = tune(*arguments, environment=environment)
        if fired < kills:
            deadline = time.monotonic() + chance.uniform(0.5, 8.0)
            waits = chance.random() < 0.8
            while process.poll() is None and (checkpoints(folder) <= before if waits else time.monotonic() < deadline):
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 0.5))
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode == 0:
            return fired, further
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"exit code {process.returncode}: {errors}")
        fired += 1
        further += checkpoints(folder) > before


def tune(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts ``altojax tune``."""
    command = [sys.executable, "-m", "altojax", "tune", *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def checkpoints(run: Path) -> int:
    """How many checkpoints the run has committed so far."""
    if not (run / "journal.db").exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{run / 'journal.db'}?mode=ro", uri=True)) as database:
        try:
            return int(database.execute("SELECT coalesce(max(id), 0) FROM checkpoints").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def outcome(run: Path) -> Outcome:
    """The decision log and the digest of every adapter's weights."""
    with Journal.read(run) as journal:
        log = journal.decision_log()
    return log, {
        str(path.relative_to(run)): digest_of(path) for path in sorted(run.glob("*/*/adapter_model.safetensors"))
    }


def first_difference(one: Outcome, other: Outcome) -> str | None:
    """Says in one line where two outcomes part, or nothing."""
    for number, (mine, theirs) in enumerate(zip(one[0], other[0], strict=False)):
        if mine != theirs:
            return f"decision {number} is {theirs}, not {mine}"
    if len(one[0]) != len(other[0]):
        return f"{len(other[0])} decisions, not {len(one[0])}"
    apart = sorted(path for path in one[1].keys() | other[1].keys() if one[1].get(path) != other[1].get(path))
    return f"weights of {', '.join(apart)}" if apart else None


if __name__ == "__main__":
    sys.exit(ctrl_c.run(main))
