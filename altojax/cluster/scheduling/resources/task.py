"""A task as the scheduler sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.nodes import Gpus

Status = Literal["waiting", "running", "stopping", "paused", "merged", "ended", "failed", "cancelled"]
OVER: tuple[Status, ...] = ("ended", "failed", "cancelled")
ON_GPUS: tuple[Status, ...] = ("running", "stopping")


@dataclass(slots=True)
class Task:
    """One task of the queue.

    Attributes:
        job: With the newest samples and speeds.
        number: Counts submissions and merges.
        submitted_s: When it joined the queue.
        waiting_s: Since when it waits, if it does.
        status: What it is doing; ``stopping`` was asked to save and stop.
        wish: What its user wants it to be.
        attempt: The newest; 0 before the first.
        gpus: Where it is, empty when it is on none.
        width: How many these are.
        began_s: When the newest attempt started.
        set_up: Whether that attempt has begun to train.
        until_s: When it is expected to end.
        charged_s: Seconds that its tenant was charged for.
        reserved: GPUs that a hold for it counts against its tenant's quota, beside those that it is on.
        started_s: When the first attempt started.
        ended_s: When it ended, failed or was cancelled.
        failures: Attempts that died by the task's own fault.
        node_failures: Attempts that a node took down.
        reason: Why it failed, last.
        members: Tasks that were merged into it.
        into: The task that it was merged into.
        alone: Whether it must not be merged, since a merged task that it was in has failed.
    """

    job: Job
    number: int
    submitted_s: float
    waiting_s: float
    status: Status = "waiting"
    wish: Literal["run", "pause", "cancel"] = "run"
    attempt: int = 0
    gpus: Gpus = field(default_factory=dict)
    width: int = 0
    began_s: float = 0.0
    set_up: bool = False
    until_s: float = 0.0
    charged_s: float = 0.0
    reserved: int = 0
    started_s: float | None = None
    ended_s: float | None = None
    failures: int = 0
    node_failures: int = 0
    reason: str = ""
    members: tuple[str, ...] = ()
    into: str | None = None
    alone: bool = False

    def left_s(self, now_s: float) -> float:
        """Seconds that a running task is expected to take from now on."""
        return max(0.0, self.until_s - now_s)

    def left(self, now_s: float) -> float:
        """Samples that a running task is expected to need from now on."""
        training_s = self.left_s(now_s) if self.set_up else min(self.left_s(now_s), self._training_s())
        return training_s * self.job.speeds[self.width]

    def correct(self, at_s: float, samples: float, speeds: Mapping[int, float]) -> None:
        """Takes over new estimates; of counts that the task cannot use, none."""
        known = {gpus: speeds.get(gpus, speed) for gpus, speed in self.job.speeds.items()}
        self.job = replace(self.job, samples=samples, speeds=known)
        if self.status in ON_GPUS:
            starts_s = at_s if self.set_up else max(at_s, self.began_s + self.job.setup_s)
            self.until_s = starts_s + self._training_s()

    def _training_s(self) -> float:
        return self.job.samples / self.job.speeds[self.width]
