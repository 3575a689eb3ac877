"""One simulation: a scheduler on a simulated cluster, from the first event to the last."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.scheduling.scheduler import Scheduler
from altojax.cluster.simulation.arrivals import Arrival
from altojax.cluster.simulation.metrics import Measures, measure
from altojax.cluster.simulation.simulated_cluster import SimulatedCluster, SimulatedRun
from altojax.cluster.simulation.workload import Workload


@dataclass(frozen=True)
class Played:
    """The outcome of one policy on a workload.

    Attributes:
        policy: Its name.
        measures: In numbers.
        runs: All attempts, in the order of their starts.
        took_s: Processor seconds that the simulation took, the scheduler's thinking included.
        records: Events and decisions.
    """

    policy: str
    measures: Measures
    runs: Sequence[SimulatedRun]
    took_s: float
    records: int


def play(workload: Workload, tasks: Sequence[Arrival], policy: Policy, bound_s: float) -> Played:
    """Plays a workload under a policy.

    Args:
        workload: As loaded.
        tasks: Its tasks.
        policy: How they are scheduled.
        bound_s: What no policy can beat.
    """
    began_s = time.process_time()
    cluster = Cluster(dict(workload.cluster))
    simulated, scheduler, records = SimulatedCluster(workload, tasks), Scheduler(cluster, policy), 0
    while events := simulated.events():
        decisions = scheduler.handle(*events)
        simulated.taken()
        for decision in decisions:
            simulated.carry_out(decision)
        records += len(events) + len(decisions)
    runs = list(simulated.runs.values())
    measures = measure(tasks, simulated.ends_s, runs, cluster, bound_s)
    return Played(policy.plan, measures, runs, time.process_time() - began_s, records)
