"""Admission control: tasks that could never run are refused before they join the queue."""

import math

from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.nodes import Cluster


def refusal(job: Job, cluster: Cluster | None, policy: Policy) -> str | None:
    """Says in one line why a task could never run, or returns None where it could.

    Args:
        job: The task.
        cluster: The nodes that there are; None where nobody knows them yet.
        policy: With the quotas of tenants.
    """
    if not job.speeds:
        return f"{job.name}: given no number of GPUs, expected at least one that it can use"
    for width, speed in job.speeds.items():
        if width < 1 or not (0 < speed < math.inf):
            return f"{job.name}: given {speed:g} samples a second on {width} GPUs, expected more than 0 on at least 1"
    if not (0 <= job.samples < math.inf and 0 <= job.setup_s < math.inf):
        return f"{job.name}: given {job.samples:g} samples and {job.setup_s:g} s of set-up, expected numbers from 0 on"
    quota = policy.tenant(job.tenant).quota
    if quota is not None and min(job.speeds) > quota:
        return f"{job.name}: needs {_gpus(min(job.speeds))}, and the quota of tenant '{job.tenant}' is {quota}"
    if cluster is None or any(cluster.holds(width) for width in job.speeds if quota is None or width <= quota):
        return None
    widths = ", ".join(map(str, sorted(job.speeds)))
    sizes = ", ".join(map(str, sorted(set(cluster.nodes.values())))) or "none"
    return (
        f"{job.name}: can use {widths} GPUs, expected a gang that fits one node, or whole nodes of one size ({sizes})"
    )


def _gpus(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"
