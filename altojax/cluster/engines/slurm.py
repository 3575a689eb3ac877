"""Workers as jobs of a Slurm cluster: one job an attempt, which we queue again ourselves when Slurm takes its nodes.

Slurm is asked with its own programs, about all jobs of one user in one call. A job is known by a name that no other
attempt has; of jobs of one name Slurm runs one at a time, and a worker whose attempt has ended does nothing, so that an
orchestrator which died between submitting and writing that down may submit once more. Which GPUs of a node a job gets
is Slurm's choice; the order says how many, and of which nodes.
"""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from altojax.cluster.engines.attempts import (
    End,
    judge,
    last_line,
    log_of,
    raise_fence,
    read_end,
    read_mark,
    unique_name,
)
from altojax.cluster.engines.engine import Order, Report
from altojax.cluster.engines.faults import AttemptKey, Faults
from altojax.cluster.engines.local import GRACE_S, WORKER
from altojax.cluster.engines.slurm_commands import JobState, Slurm, SlurmOptions
from altojax.cluster.engines.visible_gpus import cpu_environment, worker_environment
from jaxrun.config.config import StrictModel
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError
from jaxrun.untrusted.accounts import Account

PACE_S = 5.0
"""Seconds between two questions to Slurm, whose controller serves others too."""
SETTLE_S = 20.0
"""Seconds that a file of another node may take to be seen here, or a job to be seen at all."""


class _Mark(StrictModel):
    """``attempt-N.slurm.json``: written before a job is submitted, and again with its number."""

    name: str
    job: str | None


@dataclass
class _RunningJob:
    """An attempt that was started and not yet reported; times are of this process's monotonic clock.

    Attributes:
        order: The attempt.
        name: Name of its job.
        job: Slurm's number of it, once that is known.
        state: What Slurm said of it last.
        told_s: When it was asked to stop.
        over_s: When Slurm first said that it is over, or did not know it.
        forced: Whether it was cancelled because it did not stop in time.
    """

    order: Order
    name: str
    job: str | None = None
    state: JobState | None = None
    told_s: float | None = None
    over_s: float | None = None
    forced: bool = False


class SlurmEngine:
    """A Slurm cluster. To be used from one thread."""

    name = "slurm"
    switches_user = True

    def __init__(
        self,
        options: SlurmOptions | None = None,
        *,
        command: Sequence[str] = WORKER,
        cache: Path | None = None,
        grace_s: float = GRACE_S,
        pace_s: float = PACE_S,
        settle_s: float = SETTLE_S,
    ):
        """Asks for the nodes.

        Args:
            options: What jobs are submitted with.
            command: The worker; a task's folder and the attempt's number come after it. Every node must see it.
            cache: Folder of compiled programs that workers share.
            grace_s: Seconds from a request to stop to the end by force.
            pace_s: Seconds between two questions to Slurm.
            settle_s: Seconds to wait for the word of a worker whose job is over.

        Raises:
            UserError: There is no Slurm here, or it has no such partition.
        """
        self._options = options or SlurmOptions()
        self._slurm = Slurm(self._options)
        self._command, self._cache = tuple(command), cache
        self._grace_s, self._pace_s, self._settle_s = grace_s, pace_s, settle_s
        self._running: dict[AttemptKey, _RunningJob] = {}
        self._faults = Faults()
        self._reports: list[Report] = []
        self._nodes = self._slurm.nodes(())
        self._asked_s = self._counted_s = time.monotonic()

    def nodes(self) -> Mapping[str, int]:
        """Nodes that take jobs, and those that still run one of ours; the last ones known while Slurm is silent."""
        if time.monotonic() - self._counted_s >= self._pace_s:
            self._counted_s = time.monotonic()
            try:
                self._nodes = self._slurm.nodes({node for one in self._running.values() for node in one.order.gpus})
            except UserError:
                return self._nodes
        return self._nodes

    def start(self, order: Order) -> None:
        """Submits the job of an attempt, unless that was done before."""
        if (order.job, order.attempt) in self._running:
            return
        if _mark_of(order) is not None or read_end(order.folder, order.attempt) is not None:
            self.adopt([order])
        else:
            self._submit(order)

    def stop(self, job: str, attempt: int) -> None:
        """Tells an attempt to save and stop; `poll` cancels its job when its time is up."""
        one = self._running.get((job, attempt))
        if one is not None and one.told_s is None:
            one.told_s = time.monotonic()
            self._end(one, gently=True)

    def poll(self) -> list[Report]:
        """Returns the attempts that ended since the last call; asks Slurm at its own pace."""
        now = time.monotonic()
        if self._running and now - self._asked_s >= self._pace_s:
            self._asked_s = now
            running = list(self._running.items())
            for uid in dict.fromkeys(one.order.uid for _, one in running):
                with contextlib.suppress(UserError):  # the controller is away; jobs run on without it
                    states = self._slurm.jobs(uid)  # others may have jobs of the same names
                    for key, one in running:
                        if one.order.uid == uid:
                            with self._faults.of(key):
                                self._look(one, states.get(one.name), now)
        for key, reason in self._faults.lasting().items():
            self._give_up(key, reason)
        reports, self._reports = self._reports, []
        return reports

    def adopt(self, orders: Sequence[Order]) -> None:
        """Watches jobs that an earlier engine submitted; submits those that it had not come to."""
        for order in orders:
            mark = _mark_of(order)
            if mark is not None:
                self._running.setdefault((order.job, order.attempt), _RunningJob(order, mark.name, mark.job))
            elif read_end(order.folder, order.attempt) is not None:
                self._reports.append(judge(order, told=False, gone=_UNKNOWN))
            else:
                self._submit(order)

    def close(self) -> None:
        """Disconnects from the jobs, which keep running."""
        self._running.clear()

    def _submit(self, order: Order) -> None:
        one = _RunningJob(order, unique_name(order))
        try:
            if not raise_fence(order.folder, order.attempt):
                raise UserError("a newer attempt was started")
            counts = {len(indices) for indices in order.gpus.values()}
            if len(counts) != 1:
                raise UserError(f"given GPUs {json.dumps(dict(order.gpus))}, expected as many on every node")
            write_atomic(_mark_file(order), _Mark(name=one.name, job=None).model_dump_json())
            one.job = self._slurm.submit(
                one.name,
                [*self._command, str(order.folder), str(order.attempt)],
                log=log_of(order.folder, order.attempt),
                nodes=tuple(order.gpus),
                gpus=counts.pop(),
                environment=self._environment(order),
                account=None if order.uid is None else Account.of(order.uid),
            )
            write_atomic(_mark_file(order), _Mark(name=one.name, job=one.job).model_dump_json())
        except UserError as error:
            reason = f"cannot be started: {error}"
            self._reports.append(Report(order.job, order.attempt, "failed", reason, "node"))
            return
        self._running[order.job, order.attempt] = one

    def _environment(self, order: Order) -> dict[str, str]:
        account = None if order.uid is None else Account.of(order.uid)
        if self._options.gpus_per_node:
            return worker_environment(cpu_environment(len(next(iter(order.gpus.values())))), self._cache, account)
        found = worker_environment({"JAX_PLATFORMS": "cuda"}, self._cache, account)
        found.pop("CUDA_VISIBLE_DEVICES", None)  # this host's; on a job's nodes Slurm says it
        return found

    def _look(self, one: _RunningJob, state: JobState | None, now: float) -> None:
        """Takes in what Slurm says of a job; None is that it knows of none."""
        one.state = state
        told = one.told_s is not None
        if state is not None and one.job is None:
            one.job = state.job
            if told:
                self._end(one, gently=True)
        if state is not None and not state.over:
            one.over_s = None
            if one.told_s is not None and now - one.told_s > self._grace_s and not one.forced:
                one.forced = True
                self._end(one, gently=False)
            return
        one.over_s = now if one.over_s is None else one.over_s
        if read_end(one.order.folder, one.order.attempt) is None and now - one.over_s < self._settle_s:
            return
        del self._running[one.order.job, one.order.attempt]
        if state is None and one.job is None and not told:
            self._submit(one.order)  # the earlier engine died before Slurm had it
            return
        self._reports.append(judge(one.order, told=told, gone=_gone(one.order, state), forced=one.forced))

    def _give_up(self, key: AttemptKey, reason: str) -> None:
        one = self._running.pop(key)
        self._faults.forget(key)
        with contextlib.suppress(UserError):
            self._end(one, gently=False)
        self._reports.append(Report(*key, "failed", f"cannot be looked at: {reason}", "node"))

    def _end(self, one: _RunningJob, *, gently: bool) -> None:
        if one.job is None:
            return
        runs = one.state is None or one.state.runs
        self._slurm.cancel(one.job, signal="TERM" if gently and runs else None)


_UNKNOWN = End(code=1, outcome="failed", reason="Slurm knows its job no longer", blame="node")


def _gone(order: Order, state: JobState | None) -> End:
    """Returns the end of a job whose worker has reported nothing."""
    if state is None:
        return _UNKNOWN
    said = last_line(log_of(order.folder, order.attempt))
    reason = f"Slurm ended its job: {state.name}{f': {said}' if said else ''}"
    return End(code=1, outcome="failed", reason=reason, blame="task" if state.own_fault else "node")


def _mark_file(order: Order) -> Path:
    return order.folder / f"attempt-{order.attempt}.slurm.json"


def _mark_of(order: Order) -> _Mark | None:
    return read_mark(_mark_file(order), _Mark)
