"""Orders of tasks without a plan: between plans, and for the baseline schedulers.

Baselines run in the same state machine and keep quotas, retries and bounded waits; they know neither shares of tenants
nor moves, merges or plans.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from altojax.cluster.scheduling.resources.job import Job

BACKFILL_DEPTH = 100
"""Tasks behind the first that backfilling looks at, as Slurm's ``bf_max_job_test`` does by default."""


@dataclass(frozen=True)
class OrderRule:
    """A scheduling rule without a plan.

    Attributes:
        width: Chooses among the widths that a task may have now.
        key: Of a task on that width; the least starts first, and of equals the one submitted first.
        overtaking: Whether a task may start before one that comes first and does not fit: ``freely``, ``never``, or
            as in EASY backfilling where it does not delay the first (Lifka, JSSPP 1995).
        fair: Whether tenants take turns by what they have used.
        alone: Whether a task runs only while no other does.
    """

    width: Callable[[Job, Sequence[int]], int]
    key: Callable[[Job, int], float]
    overtaking: Literal["freely", "never", "backfill"]
    fair: bool = False
    alone: bool = False


def cheapest(job: Job, widths: Sequence[int]) -> int:
    """The width that costs the least GPU time, the narrowest of equals."""
    return min(widths, key=lambda width: (job.work_s(width), width))


def fastest(job: Job, widths: Sequence[int]) -> int:
    """The width that ends soonest, the narrowest of equals."""
    return min(widths, key=lambda width: (job.duration_s(width), width))


def narrowest(job: Job, widths: Sequence[int]) -> int:
    """The fewest GPUs that it can use."""
    return min(widths)


def _as_submitted(job: Job, width: int) -> float:
    return 0.0


def _longest(job: Job, width: int) -> float:
    return -job.duration_s(width)


RULES: Mapping[str, OrderRule] = {
    "portfolio": OrderRule(cheapest, _as_submitted, "freely", fair=True),
    "fifo": OrderRule(cheapest, _as_submitted, "never"),
    "backfill": OrderRule(cheapest, _as_submitted, "backfill"),
    "lpt": OrderRule(cheapest, _longest, "freely"),
    "one_gpu": OrderRule(narrowest, _as_submitted, "freely"),
    "one_at_a_time": OrderRule(fastest, _as_submitted, "never", alone=True),
}
