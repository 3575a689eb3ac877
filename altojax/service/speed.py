"""How fast a task is expected to train on how many GPUs, before it has run."""

from altojax.placement.job import Job
from altojax.service.submission import Submission

GUESSED_FLOPS = 1.0e14
"""Floating-point operations a second of one GPU: far below what products of large matrices reach on a recent one."""
GUESSED_SHARE = 0.9
"""Exponent of the speed in the number of GPUs."""
SETUP_S = 60.0
"""Seconds from a start to the first sample: loading and compiling."""


def job_of(name: str, tenant: str, submission: Submission) -> Job:
    """Returns a task as the scheduler sees it.

    Args:
        name: Names it in the queue.
        tenant: Whose it is.
        submission: What was submitted.
    """
    work = submission.workload
    # Forward, and backward without gradients of the frozen weights: 4 operations a weight and token.
    one_s = 4.0 * work.parameters * work.length / GUESSED_FLOPS
    speeds = {gpus: gpus**GUESSED_SHARE / one_s for gpus in submission.gpus}
    return Job(name, tenant, speeds, work.samples, SETUP_S)
