"""The planning problem: waiting tasks, their times on each number of GPUs, and what runs already."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.nodes import Cluster, Free, Gpus


@dataclass(frozen=True)
class Busy:
    """GPUs that run something; it stays where it is.

    Attributes:
        gpus: Which.
        until_s: When they are expected to be free; a time that has passed counts as now.
    """

    gpus: Gpus
    until_s: float


@dataclass(frozen=True)
class Problem:
    """Tasks by row and widths by column. Times count from now.

    Widths that the cluster does not hold are left out, and of each task those on which it neither ends sooner nor costs
    less than on another: speeds need not grow with GPUs.

    Attributes:
        cluster: Where.
        busy: What runs.
        widths: GPUs of a gang, ascending.
        durations_s: Of each task on each width; infinite where it is left out.
    """

    cluster: Cluster
    busy: Sequence[Busy]
    widths: Int[np.ndarray, " widths"]
    durations_s: Float[np.ndarray, "tasks widths"]

    @cached_property
    def free(self) -> Free:
        """The GPUs on which nothing runs now; to be copied."""
        return Free(self.cluster, [one.gpus for one in self.busy])

    @cached_property
    def works_s(self) -> Float[np.ndarray, "tasks widths"]:
        """GPU-seconds of each task on each width."""
        return self.durations_s * self.widths

    @cached_property
    def least_s(self) -> Float[np.ndarray, " tasks"]:
        """The shortest duration of each task; infinite for one that the cluster cannot hold."""
        return self.durations_s.min(axis=1, initial=np.inf)


def problem_of(jobs: Sequence[Job], cluster: Cluster, busy: Sequence[Busy] = (), now_s: float = 0.0) -> Problem:
    """Puts what is to be planned into numbers.

    Args:
        jobs: Tasks that wait; one row each.
        cluster: Where.
        busy: What runs, until a time on the same clock as `now_s`; GPUs that the cluster lost are left out.
        now_s: When the first can start.
    """
    widths = np.array(sorted({width for job in jobs for width in job.speeds if cluster.holds(width)}), dtype=np.int64)
    columns = {int(width): column for column, width in enumerate(widths)}
    durations_s = np.full((len(jobs), len(widths)), np.inf)
    for row, job in enumerate(jobs):
        for width in job.speeds:
            if width in columns:
                durations_s[row, columns[width]] = job.duration_s(width)
    durations_s[_useless(durations_s, widths)] = np.inf
    left = [Busy(cluster.present(one.gpus), max(one.until_s - now_s, 0.0)) for one in busy]
    return Problem(cluster, [one for one in left if one.gpus], widths, durations_s)


def _useless(
    durations_s: Float[np.ndarray, "tasks widths"], widths: Int[np.ndarray, " widths"]
) -> Bool[np.ndarray, "tasks widths"]:
    useless = np.zeros(durations_s.shape, dtype=bool)
    works_s = durations_s * widths
    for column in range(len(widths)):
        longer = durations_s <= durations_s[:, [column]]
        dearer = works_s <= works_s[:, [column]]
        other = longer & dearer
        other[:, column:] &= (durations_s < durations_s[:, [column]])[:, column:]  # of equals the narrower stays
        useless[:, column] = other.any(axis=1)
    return useless
