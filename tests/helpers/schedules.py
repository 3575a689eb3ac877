"""Small tasks, logs of whole runs, and an independent checker of schedules, for tests of the scheduler."""

from collections.abc import Iterable, Mapping, Sequence

from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.scheduling.records import (
    Ended,
    Failed,
    Halted,
    NodeChanged,
    Record,
    SchedulerEvent,
    Start,
    Stop,
    Submitted,
    from_json,
    to_json,
)
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.nodes import Cluster, Gpus
from altojax.cluster.scheduling.scheduler import Scheduler
from altojax.cluster.simulation.arrivals import Arrival
from altojax.cluster.simulation.simulated_cluster import SimulatedCluster
from altojax.cluster.simulation.workload import Workload

PLAIN = Policy(patience_s=None, moves=False, merge=False, cp_sat_s=0.0, effort=40, park_s=0.0, resume_s=0.0)


def job(name: str, tenant: str = "t", *, setup_s: float = 0.0, samples: float = 100.0, **speeds: float) -> Job:
    """A task; ``g2=1.0`` is one sample a second on two GPUs."""
    by_gpus = {int(key[1:]): speed for key, speed in speeds.items()} or {1: 1.0}
    return Job(name, tenant, by_gpus, samples, setup_s)


def submit(scheduler: Scheduler, *jobs: Job, at_s: float = 0.0) -> list:
    return scheduler.handle(*(Submitted(at_s, one) for one in jobs))


def started(decisions: Iterable[Record]) -> dict[str, Gpus]:
    return {one.job: one.gpus for one in decisions if isinstance(one, Start)}


def width(gpus: Gpus) -> int:
    return sum(map(len, gpus.values()))


def recover(lines: Sequence[str], cluster: Cluster, policy: Policy) -> Scheduler:
    """What a new process makes of a log."""
    scheduler = Scheduler(cluster, policy)
    for line in lines:
        scheduler.apply(from_json(line))
    return scheduler


def run_to_end(
    workload: Workload,
    tasks: Sequence[Arrival],
    policy: Policy,
    asked: Sequence[SchedulerEvent] = (),
    *,
    killed: bool = False,
) -> tuple[list[str], SimulatedCluster]:
    """Plays a workload and returns its log and the simulated cluster.

    Args:
        workload: What is true.
        tasks: Its tasks.
        policy: How to schedule.
        asked: What users ask for.
        killed: Whether the orchestrator is killed at every event: after it has decided and before the commit, then
            between the commit and carrying out, with some of the decisions carried out and some not.
    """
    cluster = Cluster(dict(workload.cluster))
    simulated, scheduler, log = SimulatedCluster(workload, tasks, asked), Scheduler(cluster, policy), []
    while events := simulated.events():
        if killed:
            scheduler.handle(*events)
            scheduler = recover(log, cluster, policy)
            assert simulated.events() == events
        decisions = scheduler.handle(*events)
        log += [to_json(record) for record in (*events, *decisions)]
        simulated.taken()
        if killed:
            for decision in decisions[: len(log) % (len(decisions) + 1)]:
                simulated.carry_out(decision)
            scheduler = recover(log, cluster, policy)
            assert scheduler.decide() == []
        for decision in decisions:
            simulated.carry_out(decision)
    return log, simulated


class Referee:
    """Follows a log and fails where a GPU is given twice, a gang is torn, or a quota is passed."""

    def __init__(self, cluster: Cluster, quotas: Mapping[str, int] | None = None) -> None:
        self.nodes = dict(cluster.nodes)
        self.quotas = quotas or {}
        self.jobs: dict[str, Job] = {}
        self.on: dict[str, tuple[int, Gpus]] = {}
        self.starts: list[Start] = []
        self.stopped: set[str] = set()

    def follow(self, records: Iterable[Record]) -> None:
        for record in records:
            match record:
                case Submitted():
                    self.jobs[record.job.name] = record.job
                case NodeChanged():
                    self.nodes[record.node] = record.gpus
                case Start():
                    self._start(record)
                case Stop():
                    assert self.on[record.job][0] == record.attempt
                    assert record.job not in self.stopped
                    self.stopped.add(record.job)
                case Ended() | Halted() | Failed():
                    if record.job in self.on and self.on[record.job][0] == record.attempt:
                        del self.on[record.job]
                        self.stopped.discard(record.job)
                case _:
                    if record.kind == "merge":
                        self.jobs[record.into.name] = record.into

    def _start(self, start: Start) -> None:
        one = self.jobs[start.job]
        assert start.job not in self.on
        assert width(start.gpus) in one.speeds
        taken = {(node, at) for _, gpus in self.on.values() for node, indices in gpus.items() for at in indices}
        for node, indices in start.gpus.items():
            assert len(set(indices)) == len(indices)
            assert all(at < self.nodes[node] for at in indices)
            assert not taken & {(node, at) for at in indices}
        if len(start.gpus) > 1:  # a gang over nodes takes whole ones of one size
            assert width(start.gpus) > max(self.nodes.values())
            assert all(len(indices) == self.nodes[node] for node, indices in start.gpus.items())
            assert len({self.nodes[node] for node in start.gpus}) == 1
        self.on[start.job] = start.attempt, start.gpus
        self.starts.append(start)
        held = sum(width(gpus) for name, (_, gpus) in self.on.items() if self.jobs[name].tenant == one.tenant)
        assert held <= self.quotas.get(one.tenant, held)
