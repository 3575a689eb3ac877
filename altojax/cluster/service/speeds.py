"""Expected speeds of tasks by number of GPUs, corrected by what running tasks measure.

What runs measure is kept by base, shape, kind of GPU and count (`altojax.cluster.task_estimates.speed_profile`), and
corrects what is expected of tasks of the same tenant that wait: others could write what they like into their runs. All
GPUs are taken to be of one kind: the one that the tenant measured last, else what this host has.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pydantic

from altojax.cluster.engines.visible_gpus import host_device
from altojax.cluster.scheduling.resources.job import Job, TaskFamily
from altojax.cluster.service.queue.submission import Submission
from altojax.cluster.service.shared_runs.merged_tasks import name_in
from altojax.cluster.task_estimates.speed_profile import (
    CPU,
    BaseWorkload,
    Profile,
    estimate,
    family_of,
    read_profile,
    speeds,
    workloads_from_json,
)
from altojax.config.tune_config import LONGEST_NAME
from altojax.run.prepare import CPU_SLOTS, DEVICE_SLOTS
from jaxrun.process.errors import UserError
from jaxrun.store.run_folder import JOURNAL_NAME

SETUP_S = 60.0
"""Seconds from a start to the first sample, loading and compiling, until a run has measured it."""
_MOST_KEPT = 256
"""Workloads that are kept as they were read."""
_CHANGE = 0.05
"""Share by which a speed must have changed for tasks that wait to be told."""


class Speeds:
    """Measured and predicted speeds of tasks.

    Attributes:
        profiles: Measurements by key.
    """

    def __init__(self, stored: Iterable[str]) -> None:
        """Starts with what a store has, each measurement as JSON."""
        found = list(_readable(stored))
        self.profiles = {profile.key: profile for profile in found}
        self._host = host_device(os.environ)
        self._devices = {profile.tenant: profile.device for profile in found}
        self._workloads: dict[str, list[BaseWorkload]] = {}

    def job(self, name: str, tenant: str, uid: int, submission: Submission) -> Job:
        """Returns a task as the scheduler sees it.

        Args:
            name: Names it in the queue.
            tenant: Whose it is.
            uid: OS user who submitted it; tasks of two users share no run.
            submission: What was submitted.

        Raises:
            UserError: Its workloads are not what altojax submits.
        """
        return Job(
            name,
            tenant,
            self.speeds(tenant, submission),
            submission.samples,
            self._setup_s(tenant, submission),
            self._family(name, tenant, uid, submission),
        )

    def speeds(self, tenant: str, submission: Submission) -> dict[int, float]:
        """Returns samples a second by count of GPUs."""
        return speeds(self._known(tenant), self._of(submission), self._device(tenant), submission.gpus)

    def learn(self, tenant: str, run_dir: Path, submission: Submission) -> Profile | None:
        """Returns what a run has measured, where that is news."""
        try:
            found = read_profile(run_dir, self._of(submission))
        except UserError:  # it is just being made, or is damaged, which the run itself will say
            return None
        if found is None:
            return None
        profile = found.model_copy(update={"tenant": tenant})
        known = self.profiles.get(profile.key)
        if known is not None and abs(profile.mean_s / known.mean_s - 1) <= _CHANGE:
            return None
        self.profiles[profile.key], self._devices[tenant] = profile, profile.device
        return profile

    def concerns(self, profile: Profile, tenant: str, submission: Submission) -> bool:
        """Whether a measurement says something of a task."""
        return profile.tenant == tenant and any(one.base == profile.base for one in self._of(submission))

    def _known(self, tenant: str) -> list[Profile]:
        return [profile for profile in self.profiles.values() if profile.tenant == tenant]

    def _device(self, tenant: str) -> str:
        return self._devices.get(tenant, self._host)

    def _of(self, submission: Submission) -> list[BaseWorkload]:
        found = self._workloads.get(submission.workloads)
        if found is None:
            try:
                found = workloads_from_json(submission.workloads)
            except pydantic.ValidationError as error:
                raise UserError(
                    f"workloads: {error.errors()[0]['msg']}, expected them as altojax submits them"
                ) from error
            if not found:
                raise UserError("workloads: none, expected them as altojax submits them")
            if len(self._workloads) >= _MOST_KEPT:
                self._workloads.clear()
            self._workloads[submission.workloads] = found
        return found

    def _setup_s(self, tenant: str, submission: Submission) -> float:
        first = self._of(submission)[0]
        return estimate(self._known(tenant), first, self._device(tenant), submission.gpus[0]).setup_s or SETUP_S

    def _family(self, name: str, tenant: str, uid: int, submission: Submission) -> TaskFamily | None:
        """The facts by which a task can be merged; none where a run of it has begun already, which stays alone."""
        workloads = self._of(submission)
        if not submission.key or len(workloads) > 1 or (Path(submission.output_dir) / JOURNAL_NAME).exists():
            return None
        if max(len(name_in(name, task)) for task in submission.tasks) > LONGEST_NAME:
            return None
        key, device = f"{tenant} {uid} {submission.key}", self._device(tenant)
        family = family_of(self._known(tenant), workloads[0], device, submission.gpus, key)
        room = {
            gpus: workloads[0].slots or (CPU_SLOTS if device == CPU else DEVICE_SLOTS * gpus)
            for gpus in submission.gpus
        }
        return replace(family, slots=room)


def _readable(stored: Iterable[str]) -> Iterator[Profile]:
    """The stored measurements, without those in an earlier version's format, which are made anew."""
    for text in stored:
        with contextlib.suppress(pydantic.ValidationError):
            yield Profile.model_validate_json(text)
