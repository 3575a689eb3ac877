"""Kills an orchestrator at every commit of a small run, before and after it has carried out what it decided.

Usage: orchestrator_killer.py FOLDER. Runs apart from pytest because it forks. Prints what it did as JSON.

Time is the number of records, users' wishes come one by one when so many are there, and attempts end while no wish
waits: all that could differ between two runs is what the orchestrator makes of its store.
"""

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from queues import ANN, BOB, MEMBERS, ScriptedEngine, ask, log_of, put

from altojax.cluster.engines.engine import Report
from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.service import orchestrator
from altojax.cluster.service.orchestrator import Orchestrator
from altojax.cluster.service.queue.folder import DATABASE
from altojax.cluster.service.queue.store import Store, View
from altojax.cluster.service.shared_runs.delivery_thread import Deliveries

SCRIPT = {
    ("sums-1", 1): Report("sums-1", 1, "failed", "no luck"),
    ("sums-3", 1): Report("sums-3", 1, "failed", "node lost", "node"),
    ("sums-3", 2): Report("sums-3", 2, "failed", "node lost again", "node"),
    ("sums-2", 1): Report("sums-2", 1, "failed", "out of memory"),
    ("sums-2", 2): Report("sums-2", 2, "failed", "out of memory"),
}


def wishes(queue: Path) -> list[tuple[int, Callable[[], object]]]:
    """(records that must be there, what a user then asks for)."""
    out = queue.parent / f"{queue.name}-out"
    return [
        (0, lambda: put(queue, out / "1", gpus=(1, 2))),
        (0, lambda: put(queue, out / "2", gpus=(2,))),
        (0, lambda: put(queue, out / "3", gpus=(1,))),
        (6, lambda: put(queue, out / "4", caller=BOB, key="one")),
        (8, lambda: put(queue, out / "5", caller=BOB, key="one")),
        (10, lambda: ask(queue, "sums-3", "pause", ANN)),
        (14, lambda: put(queue, out / "1")),
        (16, lambda: ask(queue, "sums-3", "resume", ANN)),
        (18, lambda: put(queue, out / "7", gpus=(2,))),
        (20, lambda: ask(queue, "sums-9", "cancel", ANN)),
    ]


class Gated(ScriptedEngine):
    """Says nothing while a request waits to be taken."""

    waits: Callable[[], bool]

    def poll(self) -> list[Report]:
        return [] if self.waits() else super().poll()


class AtOnce(ThreadPoolExecutor):
    """Delivers before the next turn, however fast that comes."""

    def submit(self, call, /, *arguments, **named):
        done: Future[None] = Future()
        done.set_result(call(*arguments, **named))
        return done


class Counted(Store):
    """Says when it has committed."""

    commits = 0
    after: Callable[[int], None]

    def commit(self, *arguments, **named) -> int:
        last = super().commit(*arguments, **named)
        self.commits += 1
        self.after(self.commits)
        return last


def serve(queue: Path, after_commit: Callable[[int], None], after_turn: Callable[[int], None]) -> int:
    """Serves until nothing is left, and returns the number of commits."""
    store = Counted.take(queue)
    store.after = after_commit
    made_s = store.made_s
    policy = Policy(retries=1, moves=True, patience_s=30.0)
    engine = Gated({"a": 2, "b": 1}, SCRIPT)
    engine.waits = lambda: asked(queue) > store.taken
    found = Orchestrator(
        store, engine, policy, MEMBERS, tell=lambda record: None, clock=lambda: made_s + len(store.records())
    )
    found._deliveries = Deliveries(AtOnce())
    found.recover()
    for _ in range(400):
        due = [wish for at, wish in wishes(queue)[asked(queue) :] if at <= len(store.records())]
        if due and asked(queue) == store.taken:
            due[0]()
        acted = found.turn()
        after_turn(store.commits)
        if not acted and found.idle and asked(queue) == len(wishes(queue)):
            break
    else:
        raise RuntimeError("it never ended")
    found.close()
    store.release()
    return store.commits


def asked(queue: Path) -> int:
    if not (queue / DATABASE).exists():
        return 0
    with contextlib.closing(View.read(queue)) as view:
        return len(view.requests())


def in_a_child(queue: Path, kill_at: int, carried_out: bool) -> bool:
    """Serves in a child that is killed at a commit; returns whether it was."""

    def kill(commits: int) -> None:
        if commits == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            serve(queue, (lambda _: None) if carried_out else kill, kill if carried_out else lambda _: None)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def main(folder: Path) -> None:
    orchestrator.deliver = lambda shared, job, config: None
    commits = serve(folder / "whole", lambda _: None, lambda _: None)
    whole = log_of(folder / "whole")
    kills = 0
    for carried_out in (False, True):
        for kill_at in range(1, commits + 1):
            queue = folder / f"{kill_at}-{carried_out}"
            assert in_a_child(queue, kill_at, carried_out) or carried_out
            kills += 1
            assert not in_a_child(queue, 0, False), "killed though nobody did"
            found = log_of(queue)
            apart = [(a, b) for a, b in zip(whole, found, strict=False) if a != b]
            assert found == whole, f"killed at {queue.name}: {apart[:1] or len(found)}, not {len(whole)} records"
    # A kill at each commit in turn: every orchestrator gets one transaction further.
    queue = folder / "again"
    while in_a_child(queue, 1, False):
        kills += 1
        assert kills < 10 * commits
    assert log_of(queue) == whole
    print(json.dumps({"commits": commits, "kills": kills, "records": len(whole), "log": whole}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
