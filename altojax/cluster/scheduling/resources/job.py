"""A moldable task as the scheduler sees it: the samples it still needs, and how fast it takes them on how many GPUs."""

from collections.abc import Mapping
from dataclasses import dataclass

LEAST, MOST = 1e-9, 1e15
"""Bounds of whatever a task is planned by, such as samples, or samples a second: sums of durations are finite."""


@dataclass(frozen=True)
class TaskFamily:
    """Facts that decide whether tasks can share one executor, and what they gain by it.

    A step of an executor takes ``step_s + sample_s · samples in the step``: the first part is the base's and paid once
    however many trials ride along, so tasks with fewer trials than slots gain by sharing.

    Attributes:
        key: Tasks with equal keys can be merged: one tenant, base, precision, length and run settings.
        trials: Trials of the task.
        batch: Mean samples of a trial's step.
        slots: GPUs -> trials for which there is room at once, whether a task has so many or not.
        step_s: GPUs -> seconds of a step whatever rides along.
        sample_s: GPUs -> seconds more for each sample of a step.
        longest_steps: Steps of the longest trial, where tasks were merged; 0 is that all are equally long.
    """

    key: str
    trials: int
    batch: float
    slots: Mapping[int, int]
    step_s: Mapping[int, float]
    sample_s: Mapping[int, float]
    longest_steps: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Whether all of its numbers are such as a task may have."""
        counts = (self.trials, self.batch, *self.slots.values())
        times = (self.longest_steps, *self.step_s.values(), *self.sample_s.values())
        return all(LEAST <= one <= MOST for one in counts) and all(0 <= one <= MOST for one in times)


@dataclass(frozen=True)
class Job:
    """One task in the queue, or several that were merged.

    Attributes:
        name: Names it in the queue.
        tenant: Whom its GPU time is charged to.
        speeds: GPUs -> samples a second, for every count that it can use; a gang starts and ends together.
        samples: Samples that it is still expected to train on, over all of its trials.
        setup_s: Seconds from a start to the first sample: loading and compiling.
        family: What it can be merged by; None is never.
    """

    name: str
    tenant: str
    speeds: Mapping[int, float]
    samples: float
    setup_s: float = 0.0
    family: TaskFamily | None = None

    @property
    def is_sound(self) -> bool:
        """Whether all of its numbers are such as a task may have."""
        speeds = all(LEAST <= speed <= MOST for speed in self.speeds.values())
        family = self.family is None or self.family.is_sound
        return speeds and family and 0 <= self.samples <= MOST and 0 <= self.setup_s <= MOST

    def duration_s(self, gpus: int) -> float:
        """Seconds from a start on `gpus` GPUs to its end."""
        return self.setup_s + self.samples / self.speeds[gpus]

    def work_s(self, gpus: int) -> float:
        """GPU-seconds of that."""
        return gpus * self.duration_s(gpus)
