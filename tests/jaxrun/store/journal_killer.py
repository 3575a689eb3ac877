"""Kills a process that keeps a journal, at random instants, and checks after each kill that nothing is lost.

Usage: journal_killer.py RUN_DIR KILLS SEED. Runs apart from pytest because it forks. Prints what it did as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from jaxrun.files.atomic import write_atomic
from jaxrun.files.folders import replace_folder
from jaxrun.store.journal import Event, Journal, Point
from jaxrun.store.metrics import MetricsLog

CONFIG = {"config_text": "seed: 1\n", "identity": "one"}
EVERY = 3


def event_of(tick: int) -> Event:
    return Event("rung", "task", tick % 4, {"value": tick * tick, "time_s": time.time()})


def train(run_dir: Path, acknowledge: int) -> None:
    """Never ends: appends a tick, now and then commits a checkpoint, and tells the parent what is safe."""
    journal = Journal.open(run_dir, **CONFIG)
    metrics = MetricsLog(run_dir, journal)
    checkpoint = journal.last_checkpoint()
    tick = checkpoint.tick if checkpoint else -1
    journal.rewind(tick)
    journal.remove_unnamed("checkpoints")
    metrics.rebuild()
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    journal.append(tick, [Event("run_start")])
    while True:
        tick += 1
        points = [Point("task", trial, tick, tick, tick, "train", 1.0 / (1 + tick)) for trial in range(3)]
        journal.append(tick, [event_of(tick)], points)
        metrics.log(points)
        os.write(acknowledge, b"a%d\n" % tick)
        if tick % EVERY == EVERY - 1:
            name = f"checkpoints/{tick}"
            with replace_folder(run_dir / name) as folder:
                for part in range(3):
                    write_atomic(folder / f"{part}.bin", os.urandom(20_000))
            journal.commit_checkpoint(tick, {"tick": tick}, [name])
            os.write(acknowledge, b"c%d\n" % tick)
            journal.prune_checkpoints(keep=2)


def check(run_dir: Path, appended: int, committed: int) -> int:
    with Journal.open(run_dir, **CONFIG) as journal:
        checkpoint = journal.last_checkpoint()
        reached = checkpoint.tick if checkpoint else -1
        assert reached >= committed, f"checkpoint {committed} was acknowledged, found {reached}"
        for name in journal.named_folders():
            assert (run_dir / name).is_dir(), f"{name} is named but not there"
        log = journal.decision_log()
        last = len(log) - 1
        assert last >= appended, f"tick {appended} was acknowledged, found {last}"
        for tick, line in enumerate(log):
            expected = json.dumps([tick, "rung", "task", tick % 4, {"value": tick * tick}], separators=(",", ":"))
            assert line == expected, f"{line} is not {expected}"
        steps = [point.step for point in journal.points() if point.trial == 1]
        assert steps == list(range(last + 1)), "points and events must come together"
    return reached


def read_until_checkpoint(readable: int) -> str:
    """However slow the machine, every fourth process gets as far as a checkpoint."""
    words = ""
    while "c" not in words:
        read = os.read(readable, 1000).decode()
        assert read, "the process ended by itself"
        words += read
    return words


def main(run_dir: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    reached = []
    for number in range(kills):
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(readable)
            try:
                train(run_dir, writable)
            finally:
                os._exit(1)
        os.close(writable)
        words = read_until_checkpoint(readable) if number % 4 == 0 else ""
        time.sleep(chance.uniform(0.002, 0.12))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the process ended by itself"
        with os.fdopen(readable) as pipe:
            words += pipe.read()
        lines = words.split("\n")[:-1]
        appended = max((int(line[1:]) for line in lines if line[0] == "a"), default=-1)
        committed = max((int(line[1:]) for line in lines if line[0] == "c"), default=-1)
        # With nothing acknowledged this time, what earlier processes committed must still be there.
        committed = max([committed, *reached])
        reached.append(check(run_dir, appended, committed))
    print(json.dumps({"kills": kills, "reached": reached}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
