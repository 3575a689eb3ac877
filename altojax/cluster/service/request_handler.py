"""Requests become events for the scheduler, or refusals in one line.

A user's own program has checked before; here it counts, and here the whole queue is known.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pydantic

from altojax.cluster.engines.faults import reason_of
from altojax.cluster.scheduling.admission import refusal
from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.scheduling.records import SchedulerEvent, Submitted, UserAsked, is_sound
from altojax.cluster.scheduling.resources.task import OVER
from altojax.cluster.scheduling.scheduler import Scheduler
from altojax.cluster.service.access import Access
from altojax.cluster.service.queue.permissions import check_live, check_reads, check_writes
from altojax.cluster.service.queue.requests import Request, job_name
from altojax.cluster.service.queue.store import Answer, StoredJob
from altojax.cluster.service.queue.submission import Submission
from altojax.cluster.service.speeds import Speeds
from altojax.cluster.tenancy.members import Members
from altojax.cluster.tenancy.run_paths import reads_of
from altojax.config.tune_config import TuneConfig
from jaxrun.files.atomic import refuse_unwritable
from jaxrun.process.errors import UserError

MOST_LIVE = 1_000
"""Tasks of one user that may wait or run, but for who serves."""


MOST_READS = 2_000
"""Paths that one submission may name to be read: each is compared with the folders of all others' tasks."""


@dataclass(frozen=True)
class Taken:
    """A request that was taken.

    Attributes:
        answer: What became of it.
        event: For the scheduler; None where it was refused.
        job: The task that is new with it.
    """

    answer: Answer
    event: SchedulerEvent | None = None
    job: StoredJob | None = None


@dataclass(frozen=True)
class Desk:
    """Takes requests.

    Attributes:
        folder: The queue's.
        members: Who belongs to which tenant.
        jobs: All tasks of the queue by name, as they are now.
        scheduler: Knows which of them are over.
        policy: Its policy.
        speeds: How fast tasks are expected to be.
        access: As whom tasks run, and what they are granted.
    """

    folder: Path
    members: Members
    jobs: Mapping[str, StoredJob]
    scheduler: Scheduler
    policy: Policy
    speeds: Speeds
    access: Access

    def take(self, request: Request, now_s: float) -> Taken:
        """Takes a request, or refuses it for whatever goes wrong; `now_s` is seconds since the queue was made."""
        try:
            if request.kind == "submit":
                with self.access.files(request.uid):
                    return self._submit(request, now_s)
            return self._ask(request, now_s)
        except Exception as error:
            return Taken(Answer(request.id, job_name(request), reason_of(error)))

    def _submit(self, request: Request, now_s: float) -> Taken:
        name = job_name(request)
        try:
            submission = Submission.from_json(request.content)
            config = TuneConfig.model_validate_json(submission.config)
        except pydantic.ValidationError as error:
            raise UserError(f"{name}: not as altojax submit writes it ({error.errors()[0]['msg']})") from error
        names = tuple(task.name for task in config.tasks)
        if (submission.output_dir, submission.tasks, request.job) != (config.output_dir, names, names[0]):
            raise UserError(f"{name}: not as altojax submit writes it (its config is of another run)")
        tenant = self.members.tenant_of(request.uid, request.tenant)
        others, reads = self._others(request.uid, tenant), reads_of(config)
        if len(reads) > MOST_READS:
            raise UserError(f"{name}: reads {len(reads):,} files and folders, expected at most {MOST_READS:,}")
        for key, path in reads.items():
            if not Path(path).is_absolute():
                raise UserError(f"{key}: {path} is another file for another user, expected an absolute path")
            check_reads(key, path, others, self.folder)
        output_dir = os.path.realpath(config.output_dir)
        check_writes(output_dir, others, self.folder)
        live = [job for job in self.jobs.values() if not (job.members or self._over(job.name))]
        if request.uid != self.members.operator and sum(job.uid == request.uid for job in live) >= MOST_LIVE:
            raise UserError(f"{MOST_LIVE:,} tasks of yours wait or run, expected some of them to end first")
        check_live(output_dir, {job.name: job.output_dir for job in live})
        refuse_unwritable(output_dir)
        self.access.check_readable(output_dir, request.uid)
        self.access.check(config, tenant, operates=request.uid == self.members.operator)
        job = self.speeds.job(name, tenant, request.uid, submission)
        if reason := refusal(job, self.scheduler.cluster, self.policy):
            raise UserError(f"queue.gpus: {reason}")
        event = Submitted(now_s, job)
        if not is_sound(event):
            raise UserError(f"{name}: not as altojax submit writes it (numbers that no task has)")
        stored = StoredJob(name, request.id, tenant, request.uid, request.user, output_dir, request.content)
        return Taken(Answer(request.id, name), event, stored)

    def _ask(self, request: Request, now_s: float) -> Taken:
        assert request.kind != "submit"
        stored = self.jobs.get(request.job)
        if stored is None:
            raise UserError(f"{request.job}: no such task, or it was refused")
        if not self.members.share(request.uid, stored.tenant, stored.uid):
            raise UserError(f"{stored.name}: belongs to tenant '{stored.tenant}', expected a task of yours")
        if self._over(request.job):
            status = self.scheduler.tasks[request.job].status
            raise UserError(f"{request.job}: is {status} already, expected a task that is not over")
        return Taken(Answer(request.id, request.job), UserAsked(now_s, request.job, request.kind))

    def _others(self, uid: int, tenant: str) -> list[StoredJob]:
        """Returns the tasks whose files are not for a user's; none where the kernel knows whose they are."""
        if self.access.uid(uid) is not None:
            return []
        return [job for job in self.jobs.values() if self.members.apart(uid, tenant, job.uid, job.tenant)]

    def _over(self, name: str) -> bool:
        task = self.scheduler.tasks.get(name)  # none yet where it was submitted a moment ago
        return task is not None and task.status in OVER
