"""Metrics of a simulation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from altojax.cluster.scheduling.planning.energy_bound import energy_bound
from altojax.cluster.scheduling.planning.problem import problem_of
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.simulation.arrivals import Arrival
from altojax.cluster.simulation.simulated_cluster import SimulatedRun

_BOUNDS = 32
_UNITS = ((48 * 3600.0, 86_400.0, "days"), (2 * 3600.0, 3600.0, "h"), (120.0, 60.0, "min"), (0.0, 1.0, "s"))


def unit_of(seconds: float) -> tuple[float, str]:
    """The best unit for a time: its seconds and its name."""
    return next((unit_s, name) for least_s, unit_s, name in _UNITS if seconds >= least_s)


@dataclass(frozen=True)
class Measures:
    """Of one policy.

    Attributes:
        makespan_s: From the first arrival to the last end.
        mean_s: Mean seconds from a task's arrival to its end.
        p95_s: 95th percentile of these.
        utilisation: Share of all GPU time until the last end in which a GPU trained, and what it trained was not lost.
        bound_s: The energy bound with hindsight: no scheduler can have a smaller makespan.
        ended: Tasks that came to their end.
        gave_up: Tasks that did not.
        attempts: Starts of all tasks.
    """

    makespan_s: float
    mean_s: float
    p95_s: float
    utilisation: float
    bound_s: float
    ended: int
    gave_up: int
    attempts: int

    @property
    def gap(self) -> float:
        """0.02 is a makespan two percent above the bound."""
        return self.makespan_s / self.bound_s - 1.0 if self.bound_s else 0.0


def measure(
    tasks: Sequence[Arrival],
    ends_s: Mapping[str, float],
    runs: Sequence[SimulatedRun],
    cluster: Cluster,
    bound_s: float,
) -> Measures:
    """Sums up what became of tasks.

    Args:
        tasks: All that were submitted.
        ends_s: When each ended that did.
        runs: All attempts.
        cluster: Where.
        bound_s: From `hindsight_bound_s`.
    """
    first_s = tasks[0].at_s
    took_s = np.array([ends_s[one.job.name] - one.at_s for one in tasks if one.job.name in ends_s])
    makespan_s = max(ends_s.values(), default=first_s) - first_s
    trained = sum(run.width * run.trained_s for run in runs)
    return Measures(
        makespan_s=makespan_s,
        mean_s=float(took_s.mean()) if len(took_s) else 0.0,
        p95_s=float(np.percentile(took_s, 95)) if len(took_s) else 0.0,
        utilisation=trained / (cluster.gpus * makespan_s) if makespan_s else 0.0,
        bound_s=bound_s,
        ended=len(took_s),
        gave_up=len(tasks) - len(took_s),
        attempts=len(runs),
    )


def hindsight_bound_s(tasks: Sequence[Arrival], cluster: Cluster) -> float:
    """Seconds from the first arrival before which no scheduler has ended all tasks, had it known all but the future.

    What arrives from some time on can only be worked on from then on: the energy bound of these, after that time. The
    largest over some arrival times, as each of them is a bound.

    Args:
        tasks: In the order of arrival.
        cluster: All of its nodes, as if none failed.
    """
    times = np.unique([one.at_s for one in tasks])
    picked = times[np.unique(np.linspace(0, len(times) - 1, _BOUNDS).astype(int))]
    best_s = 0.0
    for at_s in picked.tolist():
        jobs = [one.true_job for one in tasks if one.at_s >= at_s]
        best_s = max(best_s, at_s + energy_bound(problem_of(jobs, cluster)) - tasks[0].at_s)
    return best_s
