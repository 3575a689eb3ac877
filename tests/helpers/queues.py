"""Queues, tasks and engines for tests: nothing is trained, and no process is started."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from altojax.cluster.engines.engine import Order, Report
from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.service.access import Access
from altojax.cluster.service.orchestrator import Orchestrator
from altojax.cluster.service.queue.client import Wish
from altojax.cluster.service.queue.queue_view import QueueView, Reader
from altojax.cluster.service.queue.requests import Request
from altojax.cluster.service.queue.store import Store, append_request
from altojax.cluster.service.queue.submission import Submission
from altojax.cluster.task_estimates.speed_profile import BaseWorkload, workloads_to_json
from altojax.cluster.tenancy.members import Members, user_name
from altojax.config.tune_config import TuneConfig
from altojax.estimates.speed_model import AdapterLoad as Load
from jaxlm.families.registry import random_config


@dataclass(frozen=True)
class Caller:
    """An OS user, who need not be one of this host.

    Attributes:
        uid: The user's number.
        user: The user's name.
    """

    uid: int
    user: str


ANN, BOB, ME = Caller(2001, "ann"), Caller(2002, "bob"), Caller(os.getuid(), user_name(os.getuid()))
MEMBERS = Members(os.getuid(), {one.user: frozenset({one.uid}) for one in (ANN, BOB)})
"""A tenant of each."""
LOAD = Load(random_config("llama"), rank=4, keys=("self_attn.q_proj",), rows=2, length=32, trials=4)
WORKLOADS = workloads_to_json([BaseWorkload("tiny", LOAD, None, 1000)])


def config_of(output_dir: Path, *, name: str = "sums", train: str = "hub/rows", model: str = "hub/model") -> TuneConfig:
    return TuneConfig.model_validate(
        {
            "output_dir": str(output_dir),
            "model": {"model_name_or_path": model},
            "tasks": [{"name": name, "data": {"train": train}}],
        }
    )


def submission(config: TuneConfig, gpus: Sequence[int] = (1,), key: str = "") -> Submission:
    names = tuple(task.name for task in config.tasks)
    return Submission(config.model_dump_json(), config.output_dir, names, tuple(gpus), 4, 1e6, WORKLOADS, key)


def put(
    queue: Path,
    output_dir: Path,
    *,
    caller: Caller = ANN,
    tenant: str | None = None,
    gpus: Sequence[int] = (1,),
    key: str = "",
    **named: str,
) -> Request:
    """Submits a task that nobody has looked at."""
    return submit(queue, submission(config_of(output_dir, **named), gpus, key), caller, tenant)


def submit(queue: Path, task: Submission, caller: Caller = ANN, tenant: str | None = None) -> Request:
    """Puts a task into the queue's database, as if its user had been found to be this one."""
    return _appended(
        queue, Request("submit", task.tasks[0], tenant, caller.uid, caller.user, time.time(), task.to_json())
    )


def ask(queue: Path, job: str, wish: Wish, caller: Caller = ANN) -> Request:
    """Asks for something about a task, likewise."""
    return _appended(queue, Request(wish, job, None, caller.uid, caller.user, time.time()))


def _appended(queue: Path, request: Request) -> Request:
    return replace(request, id=append_request(queue, request))


def snapshot(queue: Path) -> QueueView:
    reader = Reader(queue)
    try:
        return reader.snapshot()
    finally:
        reader.close()


def statuses(queue: Path) -> dict[str, str]:
    return {job.name: job.status for job in snapshot(queue).jobs}


@dataclass
class ScriptedEngine:
    """Ends attempts as a script says, one at a poll, first come first served.

    What was started lies in the tasks' folders, as with a real engine, so that another one finds it.

    Attributes:
        there: Node -> GPUs.
        script: (task, attempt) -> what becomes of it; all others end well, unless `holds`.
        holds: Whether attempts without a script run until they are stopped.
    """

    there: dict[str, int]
    script: Mapping[tuple[str, int], Report] = field(default_factory=dict)
    holds: bool = False
    name: str = "script"
    switches_user: bool = False
    running: dict[tuple[str, int], Order] = field(default_factory=dict)
    told: list[tuple[str, int]] = field(default_factory=list)

    def nodes(self) -> dict[str, int]:
        return dict(self.there)

    def start(self, order: Order) -> None:
        assert (order.folder / "task.yaml").is_file()
        (order.folder / f"started-{order.attempt}").touch()
        self.running[order.job, order.attempt] = order

    def stop(self, job: str, attempt: int) -> None:
        if (job, attempt) in self.running and (job, attempt) not in self.told:
            self.told.append((job, attempt))

    def poll(self) -> list[Report]:
        for key in [*self.told, *sorted(self.running)]:
            if key in self.told:
                self.told.remove(key)
                del self.running[key]
                return [Report(*key, "halted")]
            if key in self.script or not self.holds:
                del self.running[key]
                return [self.script.get(key, Report(*key, "ended"))]
        return []

    def adopt(self, orders: Sequence[Order]) -> None:
        for order in orders:
            assert (order.folder / f"started-{order.attempt}").exists(), "adopted what was never started"
            self.running[order.job, order.attempt] = order

    def close(self) -> None:
        pass


def orchestrate(
    queue: Path,
    engine: ScriptedEngine,
    *,
    members: Members = MEMBERS,
    access: Access | None = None,
    say: Callable[[str], None] = lambda line: None,
    **policy: object,
) -> Orchestrator:
    """An orchestrator that has taken the queue over."""
    found = Orchestrator(
        Store.take(queue),
        engine,
        Policy.model_validate(policy),
        members,
        tell=lambda record: None,
        say=say,
        access=access,
    )
    found.recover()
    return found


def finish(orchestrator: Orchestrator, turns: int = 2000) -> None:
    """Serves until nothing is left to do, and closes."""
    for _ in range(turns):
        if not orchestrator.turn():
            if orchestrator.idle:
                break
            time.sleep(0.01)  # a delivery goes on beside
    assert orchestrator.idle
    leave(orchestrator)


def leave(orchestrator: Orchestrator) -> None:
    orchestrator.close()
    orchestrator.store.release()


def log_of(queue: Path) -> list[str]:
    """The decision log, record by record."""
    from altojax.cluster.scheduling.records import to_json
    from altojax.cluster.service.queue.store import View

    view = View.read(queue)
    try:
        return [json.dumps(json.loads(to_json(record)), sort_keys=True) for _, record in view.records()]
    finally:
        view.close()
