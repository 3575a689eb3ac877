"""Kill the orchestrator at every event of a run: whoever follows decides the same, to the last byte of the log.

What a process leaves that is killed is what lies on the disk at that moment, of which a copy is made.

Time is the number of records, users' wishes come one by one when so many are there, and attempts end while no wish
waits: all that could differ between two runs is what the orchestrator makes of its store.
"""

import contextlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from queues import ANN, BOB, MEMBERS, ScriptedEngine, ask, log_of, put

from altojax.cluster.engines.engine import Report
from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.service import orchestrator
from altojax.cluster.service.orchestrator import Orchestrator
from altojax.cluster.service.queue.folder import DATABASE
from altojax.cluster.service.queue.store import Store, View
from altojax.cluster.service.shared_runs.delivery_thread import Deliveries

pytestmark = pytest.mark.slow

After = Callable[[int], object]

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


def nothing(commits: int) -> None:
    pass


def serve(queue: Path, after_commit: After = nothing, after_turn: After = nothing) -> int:
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
    try:
        found.recover()
        for _ in range(400):
            due = [wish for at, wish in wishes(queue)[asked(queue) :] if at <= len(store.records())]
            if due and asked(queue) == store.taken:
                due[0]()
            acted = found.turn()
            after_turn(store.commits)
            if not acted and found.idle and asked(queue) == len(wishes(queue)):
                return store.commits
        raise RuntimeError("it never ended")
    finally:
        found.close()
        store.release()


def asked(queue: Path) -> int:
    if not (queue / DATABASE).exists():
        return 0
    with contextlib.closing(View.read(queue)) as view:
        return len(view.requests())


class Killed(BaseException):
    """Nobody catches it."""


@pytest.fixture
def queue(in_memory, monkeypatch):
    """Where one is served; what has no run is delivered all the same."""
    monkeypatch.setattr(orchestrator, "deliver", lambda shared, job, config: None)
    return in_memory / "queue"


def put_back(folder: Path, queue: Path) -> None:
    """Puts a copy in the queue's place."""
    shutil.rmtree(queue)
    folder.rename(queue)


def test_killed_at_every_commit_the_decision_log_is_the_same(queue):
    # Killed before what was decided is carried out, and after it; of what is left twice alike one is looked at.
    left: dict[tuple[object, ...], Path] = {}

    def leave(commits: int, carried_out: bool) -> None:
        folder = queue.parent / f"{commits}-{carried_out}"
        if not folder.exists():
            shutil.copytree(queue, folder)
            files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm"))
            left.setdefault(tuple((file.relative_to(folder), file.read_bytes()) for file in files), folder)

    commits = serve(queue, lambda commits: leave(commits, False), lambda commits: leave(commits, True))
    log = log_of(queue)
    kinds = {json.loads(record)["kind"] for record in log}
    common = {"submitted", "asked", "plan", "merge", "start", "stop", "give_up"}
    assert kinds >= {"failed", "halted", "ended", "node", *common}
    assert commits > 15 and len(left) > commits + 5
    for folder in left.values():
        put_back(folder, queue)
        serve(queue)
        check(folder.name, log_of(queue), log)

    def leave_and_die(commits: int) -> None:
        shutil.copytree(queue, queue.parent / "left")
        raise Killed

    # At each commit in turn: every orchestrator gets one transaction further.
    queue, kills = queue.parent / "again" / "queue", 0
    while kills < 10 * commits:
        try:
            serve(queue, leave_and_die)
            break
        except Killed:
            kills += 1
            put_back(queue.parent / "left", queue)
    assert kills >= commits - 2
    check("each in turn", log_of(queue), log)


def check(where: str, found: list[str], log: list[str]) -> None:
    apart = [(a, b) for a, b in zip(log, found, strict=False) if a != b]
    assert found == log, f"killed at {where}: {apart[:1] or len(found)}, not {len(log)} records"
