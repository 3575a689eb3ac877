"""Loads a queue until it should break: many tasks and clients, workers and orchestrators killed at random.

    python scripts/stress/load_queue.py [--tasks 1000] [--clients 50] [--gpus 16] [--minutes 10]
        [--seed 0] [--out runs/load]
    python scripts/stress/load_queue.py --short

Clients are threads of a few processes, or of this one where they are few, each with connections of its own: they submit
their share of the tasks in the first half of the time, and look at the queue once a second. The orchestrator is
`altojax serve` with the engine for processes of this host, whose workers only wait a while, in place of training, and
mostly end well. Whatever is killed at random gets SIGKILL.

At the end every task must have come to its end once: none is lost, none ended twice, and no worker whose attempt had
been replaced said that it ended. Exit code 1 and what is wrong if not. Times of submitting and looking are printed.
"""

from jaxrun.process.script import run_script

import argparse
import contextlib
import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

from altojax.cluster.engines.process import Identity
from altojax.cluster.service.queue.client import OperatorClient
from altojax.cluster.service.queue.queue_view import QueueView, Reader
from altojax.cluster.service.queue.store import View
from altojax.cluster.service.queue.submission import Submission
from altojax.cluster.service.submission_builder import SubmitConfig, submission_of
from jaxrun.config.config import check_config
from jaxrun.config.script_options import ScriptOptions

TINY = Path(__file__).parents[2] / "configs" / "tiny"

# What a worker does, in the language that starts fastest: it waits, fails now and then, and says that it ended only
# where its attempt is still the newest, by a file that is put in place whole; then it notes that its task has ended.
WORKER = """#!/bin/sh
folder=$1 attempt=$2
sleep "$(awk -v seed="$$" 'BEGIN { srand(seed); print LONGEST * rand() }')"
[ "$(( $$ % 20 ))" -eq 0 ] && { echo "no luck"; exit 1; }
newest=$(sed 's/[^0-9]//g' "$folder/fence.json")
[ "$newest" -eq "$attempt" ] || { echo "$folder $attempt gave way to $newest" >>"OUT/replaced"; exit 3; }
end="$folder/attempt-$attempt.json"
echo '{"code": 0, "outcome": "ended", "reason": "", "blame": "task"}' >"$end.new" && mv "$end.new" "$end"
echo "${folder##*/} $attempt" >>"OUT/ends"
"""


@dataclass
class Times:
    """Seconds that calls took."""

    submit_s: list[float] = field(default_factory=list)
    look_s: list[float] = field(default_factory=list)


def main() -> int:
    """Runs the load and checks what came of it."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--gpus", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/load"))
    parser.add_argument("--short", action="store_true", help="a few seconds, for every change")
    options = parser.read()
    if options.short:
        options.tasks, options.clients, options.gpus, options.minutes = 20, 4, 6, 0.07
    out = options.out.absolute()
    if out.exists() and not (out / "queue").is_dir():
        parser.error(f"--out {out}: holds something else, expected a new folder or that of an earlier load")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return QueueLoad(options, out).run()


class QueueLoad:
    """One run of the load."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.options, self.out, self.queue = options, out, out / "queue"
        self.chance = random.Random(options.seed)
        self.worker = out / "worker.sh"
        self.longest_s = 2 * 0.6 * options.minutes * 60 * options.gpus / options.tasks
        self.worker.write_text(WORKER.replace("OUT", str(out)).replace("LONGEST", f"{self.longest_s:.3f}"))
        self.killed: Counter[str] = Counter()

    def run(self) -> int:
        """Submits, looks and kills for the time that was asked for, lets all come to its end, and checks."""
        pattern = self._pattern()
        begun = time.monotonic()
        served = self._serve()
        while not (self.queue / "queue.db").exists() and served.poll() is None:
            time.sleep(0.1)
        share = [range(n, self.options.tasks, self.options.clients) for n in range(self.options.clients)]
        processes = min(5, -(-self.options.clients // 10))
        with multiprocessing.get_context("spawn").Pool(processes) if processes > 1 else ThreadPool(1) as pool:
            lasts_s = 60 * self.options.minutes
            work = [(self.queue, self.out, pattern, share[n::processes], lasts_s) for n in range(processes)]
            clients = pool.starmap_async(client_process, work)
            served_by, kill_at = 0, float("inf")
            # On a machine that is slow to begin, until somebody was killed at all.
            patience = time.monotonic() + lasts_s + 60
            while not clients.ready() or (len(self.killed) < 2 and time.monotonic() < patience):
                # So often that about every third attempt is killed.
                time.sleep(self.chance.uniform(1.0, 3.0) * self.longest_s / self.options.gpus)
                self._kill_a_worker()
                if (token := self._token()) > served_by:
                    served_by = token
                    kill_at = time.monotonic() + self.chance.uniform(1.0, 3.0 + 5.0 * self.options.minutes)
                # Once before a worker was killed: on a slow machine none would begin between two ends of who starts it.
                if time.monotonic() > kill_at and (self.killed["worker"] or not self.killed["orchestrator"]):
                    served.kill()
                    served.wait()
                    self.killed["orchestrator"] += 1
                    served, kill_at = self._serve(), float("inf")
            times = clients.get(timeout=120)
        snapshot = self._until_all_is_over(served)
        served.send_signal(signal.SIGTERM)
        served.wait(timeout=60)
        print(f"{time.monotonic() - begun:.0f} s; killed: {dict(self.killed)}")
        tell_times("submit", [s for one in times for s in one.submit_s])
        tell_times("look", [s for one in times for s in one.look_s])
        wrong = list(self._wrong(snapshot))
        for line in wrong[:20]:
            print(f"load_queue: {line}", file=sys.stderr)
        attempts = Counter(span.outcome for span in snapshot.spans)
        print(f"{len(snapshot.jobs)} tasks, {len(snapshot.spans)} attempts: {dict(attempts)}")
        print("nothing was lost, nothing ran to its end twice" if not wrong else f"{len(wrong)} things are wrong")
        return 1 if wrong else 0

    def _pattern(self) -> Submission:
        """A small task as `altojax submit` hands it in."""
        rows = self.out / "rows.jsonl"
        texts = [{"prompt": f"{n} + 1 is", "completion": str(n + 1)} for n in range(64)]
        rows.write_text("".join(json.dumps(text) + "\n" for text in texts))
        config = {
            "output_dir": str(self.out),
            "model": {"model_name_or_path": str(TINY), "random_init": True},
            "search": {"lora_rank": [4, 8], "train_samples": 64},
            "tasks": [{"name": "load", "data": {"train": str(rows), "max_length": 32}}],
        }
        return replace(submission_of(check_config(SubmitConfig, config, "load_queue")), key="")

    def _serve(self) -> subprocess.Popen[bytes]:
        engine = json.dumps(
            {"kind": "local", "gpus": self.options.gpus, "worker": ["sh", str(self.worker)], "grace_s": 5}
        )
        policy = json.dumps({"retries": 1000, "node_retries": 1000, "patience_s": 20.0})
        command = [sys.executable, "-m", "altojax", "serve", f"queue={self.queue}", f"engine={engine}"]
        with (self.out / "serve.log").open("ab") as log:
            return subprocess.Popen([*command, f"policy={policy}", "page=null"], stdout=log, stderr=log)

    def _token(self) -> int:
        """Fencing token of the newest orchestrator that has begun to serve."""
        with contextlib.closing(View.read(self.queue)) as view:
            return view.holder.token

    def _kill_a_worker(self) -> None:
        running = list(self.queue.glob("jobs/*/attempt-*.pid.json"))
        self.chance.shuffle(running)
        for path in running:
            identity = Identity.model_validate_json(path.read_text())
            if identity.lives:
                identity.kill()
                self.killed["worker"] += 1
                return

    def _until_all_is_over(self, served: subprocess.Popen[bytes]) -> QueueView:
        deadline = time.monotonic() + 60 + 60 * self.options.minutes
        with contextlib.closing(Reader(self.queue)) as reader:
            while True:
                snapshot = reader.snapshot()
                open_jobs = [job for job in snapshot.jobs if job.status not in ("ended", "failed", "refused")]
                if not open_jobs or time.monotonic() > deadline or served.poll() is not None:
                    return snapshot
                time.sleep(0.5)

    def _wrong(self, snapshot: QueueView) -> Sequence[str]:
        found = []
        if len(snapshot.jobs) != self.options.tasks:
            found.append(f"{len(snapshot.jobs)} tasks, expected {self.options.tasks}")
        found += [f"{job.name} is {job.status}: {job.reason}" for job in snapshot.jobs if job.status != "ended"]
        said = Counter(
            path.parent.name for path in self.queue.glob("jobs/*/attempt-*.json") if path.name.count(".") == 1
        )
        ends = Counter(line.split()[0] for line in (self.out / "ends").read_text().splitlines())
        for job in snapshot.jobs:
            if said[job.name] != 1:
                found.append(f"{said[job.name]} attempts of {job.name} say that they ended")
            if ends[job.name] > 1:
                found.append(f"{job.name} came to its end {ends[job.name]} times")
        outcomes = Counter(span.job for span in snapshot.spans if span.outcome == "ended")
        found += [f"{name} is on record as ended {count} times" for name, count in outcomes.items() if count > 1]
        return found


def client_process(queue: Path, out: Path, pattern: Submission, shares: Sequence[range], lasts_s: float) -> Times:
    """Some clients, each a thread."""
    times = Times()
    threads = [
        threading.Thread(target=client, args=(queue, out, pattern, share, time.time() + lasts_s, times))
        for share in shares
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def client(queue: Path, out: Path, pattern: Submission, share: range, until: float, times: Times) -> None:
    """One client: submits its tasks at random times and looks till the end."""
    chance = random.Random(share.start)
    begun = time.time()
    due = sorted((begun + chance.uniform(0.0, 0.5) * (until - begun), number) for number in share)
    while not (queue / "queue.db").exists():
        submit_one(queue, out, pattern, due.pop(0)[1], times)
    with contextlib.closing(Reader(queue)) as reader:
        while time.time() < until or due:
            while due and due[0][0] <= time.time():
                submit_one(queue, out, pattern, due.pop(0)[1], times)
            before = time.perf_counter()
            reader.snapshot()
            times.look_s.append(time.perf_counter() - before)
            time.sleep(chance.uniform(0.5, 1.5))


def submit_one(queue: Path, out: Path, pattern: Submission, number: int, times: Times) -> None:
    """Submits one task: the pattern with a folder and GPU counts of its own."""
    output_dir = str(out / "runs" / str(number))
    config = json.dumps({**json.loads(pattern.config), "output_dir": output_dir})
    task = replace(pattern, config=config, output_dir=output_dir, gpus=((1,), (1, 2), (2, 4))[number % 3])
    before = time.perf_counter()
    OperatorClient(queue).submit(task, None, patience_s=0.0)
    times.submit_s.append(time.perf_counter() - before)


def tell_times(what: str, seconds: list[float]) -> None:
    """Prints percentiles of the time that a call took."""
    seconds.sort()
    p50, p95, most = (1000 * seconds[min(int(share * len(seconds)), len(seconds) - 1)] for share in (0.5, 0.95, 1.0))
    print(f"{what}: {len(seconds)} times, median {p50:.0f} ms, p95 {p95:.0f} ms, longest {most:.0f} ms")


if __name__ == "__main__":
    sys.exit(run_script(main))
