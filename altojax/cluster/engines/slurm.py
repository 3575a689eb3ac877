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

from altojax.cluster.engines.attempts import End, judge, last_line, log_of, read_end, read_mark, unique_name
from altojax.cluster.engines.engine import Order
from altojax.cluster.engines.local import GRACE_S, WORKER
from altojax.cluster.engines.slurm_commands import JobState, Slurm, SlurmOptions
from altojax.cluster.engines.visible_gpus import cpu_environment, worker_environment
from altojax.cluster.engines.watched import Attempt, WatchedEngine
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


@dataclass(kw_only=True)
class _RunningJob(Attempt):
    """An attempt as a job.

    Attributes:
        name: Name of its job.
        job: Slurm's number of it, once that is known.
        state: What Slurm said of it last.
        over_s: When Slurm first said that it is over, or did not know it.
    """

    name: str
    job: str | None = None
    state: JobState | None = None
    over_s: float | None = None


class SlurmEngine(WatchedEngine[_RunningJob]):
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
        super().__init__()
        self._options = options or SlurmOptions()
        self._slurm = Slurm(self._options)
        self._command, self._cache = tuple(command), cache
        self._grace_s, self._pace_s, self._settle_s = grace_s, pace_s, settle_s
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

    def _find(self, order: Order) -> _RunningJob | None:
        mark = read_mark(_mark_file(order), _Mark)
        return None if mark is None else _RunningJob(order=order, name=mark.name, job=mark.job)

    def _launch(self, order: Order) -> _RunningJob:
        one = _RunningJob(order=order, name=unique_name(order))
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
        return one

    def _environment(self, order: Order) -> dict[str, str]:
        account = None if order.uid is None else Account.of(order.uid)
        if self._options.gpus_per_node:
            return worker_environment(cpu_environment(len(next(iter(order.gpus.values())))), self._cache, account)
        found = worker_environment({"JAX_PLATFORMS": "cuda"}, self._cache, account)
        found.pop("CUDA_VISIBLE_DEVICES", None)  # this host's; on a job's nodes Slurm says it
        return found

    def _look_at_all(self) -> None:
        """Asks Slurm at its own pace, about all jobs of a user at once."""
        now = time.monotonic()
        if not self._running or now - self._asked_s < self._pace_s:
            return
        self._asked_s, running = now, list(self._running.items())
        for uid in dict.fromkeys(one.order.uid for _, one in running):
            with contextlib.suppress(UserError):  # the controller is away; jobs run on without it
                states = self._slurm.jobs(uid)  # others may have jobs of the same names
                for key, one in running:
                    if one.order.uid == uid:
                        one.state = states.get(one.name)
                        with self._faults.of(key):
                            self._look(one)

    def _look(self, one: _RunningJob) -> None:
        """Takes in what Slurm says of a job; None is that it knows of none."""
        state, now = one.state, self._asked_s
        told = one.told_s is not None
        if state is not None and one.job is None:
            one.job = state.job
            if told:
                self._tell(one)
        if state is not None and not state.over:
            one.over_s = None
            if one.told_s is not None and now - one.told_s > self._grace_s and not one.forced:
                one.forced = True
                self._kill(one)
            return
        one.over_s = now if one.over_s is None else one.over_s
        if read_end(one.order.folder, one.order.attempt) is None and now - one.over_s < self._settle_s:
            return
        if state is None and one.job is None and not told:
            del self._running[one.order.job, one.order.attempt]
            self._begin(one.order)  # the earlier engine died before Slurm had it
            return
        self._over(one, judge(one.order, told=told, gone=_gone(one.order, state), forced=one.forced))

    def _tell(self, one: _RunningJob) -> None:
        if one.job is not None:
            self._slurm.cancel(one.job, signal="TERM" if one.state is None or one.state.runs else None)

    def _kill(self, one: _RunningJob) -> None:
        if one.job is not None:
            self._slurm.cancel(one.job, signal=None)


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
