"""The queue at one instant, for tables and pages: the same records, read by the same scheduler."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pydantic

from altojax.cluster.scheduling.plan_forecast import Expected
from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.scheduling.records import Ended, Failed, Halted, Record, Start
from altojax.cluster.scheduling.resources.nodes import Cluster, Gpus
from altojax.cluster.scheduling.resources.task import ON_GPUS, OVER, Task
from altojax.cluster.scheduling.scheduler import Scheduler
from altojax.cluster.service.queue.folder import check_queue
from altojax.cluster.service.queue.requests import Request, job_name
from altojax.cluster.service.queue.store import StoredJob, View
from altojax.cluster.service.queue.stored_forecast import read_forecast
from altojax.cluster.service.queue.submission import Submission
from jaxrun.config.config import check_config
from jaxrun.store.records import record_errors


@dataclass(frozen=True)
class JobView:
    """One task. Times are seconds since the queue was made.

    Attributes:
        name: Names it in the queue.
        tenant: Whose it is; empty where it was refused or not taken yet and names none.
        user: OS user who submitted it.
        uid: Number of that user.
        status: As `altojax.cluster.scheduling.resources.task.Task` has it; before an orchestrator has seen it
            ``submitted``, and ``refused`` where it did not take it.
        attempt: The newest; 0 before the first.
        gpus: Where it runs.
        width: GPUs that it runs on, or is planned to.
        widths: GPU counts that it can use.
        submitted_s: When it was submitted.
        started_s: When its first attempt started.
        ended_s: When it was over.
        start_s: When it started, or is predicted to while somebody serves.
        end_s: When it was over, or is predicted to be.
        reason: Why it failed or was refused.
        output_dir: Its run's folder.
        journal_dir: The folder whose journal records its trials while it runs: another where it was merged.
        tasks: Names of its tasks, as the journal has them.
        trials: Trials of all of them.
        merged_into: The task that it was merged into.
        members: Tasks that were merged into it.
    """

    name: str
    tenant: str
    user: str
    uid: int
    status: str
    widths: tuple[int, ...]
    submitted_s: float
    reason: str
    output_dir: str
    journal_dir: str
    tasks: tuple[str, ...]
    trials: int
    attempt: int = 0
    gpus: Gpus = field(default_factory=dict)
    width: int | None = None
    started_s: float | None = None
    ended_s: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    merged_into: str | None = None
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttemptSpan:
    """One attempt on its GPUs: a bar of the timeline.

    Attributes:
        job: The task.
        attempt: Which attempt.
        tenant: Whose.
        gpus: Where.
        start_s: When it started.
        end_s: When it was over; None while it runs.
        outcome: ``running``, ``ended``, ``halted`` or ``failed``.
        reason: Why it failed.
    """

    job: str
    attempt: int
    tenant: str
    gpus: Gpus
    start_s: float
    end_s: float | None = None
    outcome: str = "running"
    reason: str = ""


@dataclass(frozen=True)
class TenantView:
    """Tasks and use of a tenant.

    Attributes:
        name: Names it.
        weight: Its weight.
        quota: GPUs that it may hold at a time; None is all.
        gpus: GPUs that it holds.
        gpu_s: GPU-seconds that it has used.
        waiting: Its tasks that wait.
        running: Its tasks that run.
    """

    name: str
    weight: float
    quota: int | None
    gpus: int
    gpu_s: float
    waiting: int
    running: int


@dataclass(frozen=True)
class QueueView:
    """A queue at one instant.

    Attributes:
        made_s: When it was made, in seconds since the epoch.
        now_s: Seconds since.
        nodes: Node -> GPUs.
        jobs: All tasks, in the order of submission; a merged one after its members.
        spans: All attempts, in the order of their starts.
        tenants: Those that have tasks or are named in the policy.
        rule: What made the last plan; empty before any.
        makespan_s: Seconds until all is expected to be done; None where nothing is left or nobody serves.
        bound_s: No schedule ends sooner; None likewise.
        gap: By how much the makespan is above the bound, as a share of it.
        holder: Who orchestrates, or did last.
        alive: Whether somebody does.
    """

    made_s: float
    now_s: float
    nodes: Mapping[str, int]
    jobs: tuple[JobView, ...]
    spans: tuple[AttemptSpan, ...]
    tenants: tuple[TenantView, ...]
    rule: str
    makespan_s: float | None
    bound_s: float | None
    gap: float | None
    holder: str
    alive: bool

    def job(self, name: str) -> JobView | None:
        """Returns one task, or None."""
        return next((job for job in self.jobs if job.name == name), None)


@dataclass
class _History:
    """State derived from the records read so far."""

    scheduler: Scheduler
    policy: Policy
    last: int = 0
    spans: dict[tuple[str, int], AttemptSpan] = field(default_factory=dict)

    def add(self, record: Record, tenants: Mapping[str, str]) -> None:
        self.scheduler.apply(record)
        match record:
            case Start():
                key = record.job, record.attempt
                self.spans[key] = AttemptSpan(*key, tenants.get(record.job, ""), record.gpus, record.at_s)
            case Ended() | Halted() | Failed():
                span = self.spans.get((record.job, record.attempt))
                if span is not None and span.end_s is None:
                    reason = record.reason if isinstance(record, Failed) else ""
                    ended = replace(span, end_s=record.at_s, outcome=record.kind, reason=reason)
                    self.spans[span.job, span.attempt] = ended


class Reader:
    """Follows a queue; each snapshot reads only what has been added. To be used from one thread."""

    def __init__(self, folder: Path) -> None:
        """Opens a queue.

        Raises:
            UserError: There is none, or it is corrupt or of a newer version.
        """
        check_queue(folder)
        self.folder = folder
        self._view: View | None = None
        self._history: _History | None = None
        self._jobs: dict[str, StoredJob] = {}
        self._submissions: dict[str, Submission] = {}
        self._over: dict[str, JobView] = {}
        self._row = 0
        self._asked: dict[int, Request] = {}

    def snapshot(self) -> QueueView:
        """Returns the queue as it is now.

        Raises:
            UserError: It cannot be read.
        """
        view = self._open()
        with view.at_one_instant():
            return self._snapshot(view)

    def close(self) -> None:
        """Lets go of the files."""
        if self._view is not None:
            self._view.close()

    def _open(self) -> View:
        """Opens what is there; a copy, as a folder that cannot be written gives, is made anew each time."""
        if self._view is not None and self._view.is_copy:
            self.close()
            self._view = None
        if self._view is None:
            self._view = View.read(self.folder)
        return self._view

    def _snapshot(self, view: View) -> QueueView:
        made_s, now_s = view.made_s, max(0.0, time.time() - view.made_s)
        self._asked.update({one.id: one for one in view.requests(max(self._asked, default=0))})
        for row, job in view.jobs(self._row):
            self._row = row
            self._jobs[job.name] = job
        policy = check_config(Policy, view.get("policy", {}), "the queue's policy")
        if self._history is None or self._history.policy != policy:
            self._history = _History(Scheduler(Cluster({}), policy), policy)
        history, tenants = self._history, {name: job.tenant for name, job in self._jobs.items()}
        records, holder = view.records(history.last), view.holder
        alive = holder.until_s > time.time()
        with record_errors(view.path):
            for number, record in records:
                history.add(record, tenants)
                history.last = number
            if unknown := history.scheduler.tasks.keys() - self._jobs.keys():
                raise ValueError(f"{min(unknown)} was scheduled and not stored")
            forecast = read_forecast(view.get("forecast") if alive else None)
        scheduler = history.scheduler
        jobs = [
            self._over.get(name) or self._job(task, scheduler.tasks.get(task.into or ""), made_s, forecast.tasks)
            for name, task in scheduler.tasks.items()
        ]
        refused = {answer.request: answer.error for answer in view.refusals()}
        taken = view.taken
        jobs += [
            self._untaken(one, made_s, refused.get(one.id))
            for one in self._asked.values()
            if one.kind == "submit" and (one.id in refused or one.id > taken)
        ]
        return QueueView(
            made_s=made_s,
            now_s=now_s,
            nodes=scheduler.cluster.nodes,
            jobs=tuple(jobs),
            spans=tuple(history.spans.values()),
            tenants=_tenants(scheduler, policy),
            rule=scheduler.plan.rule if scheduler.plan else "",
            makespan_s=forecast.makespan_s if forecast.tasks else None,
            bound_s=forecast.bound_s if forecast.tasks else None,
            gap=forecast.gap if forecast.tasks else None,
            holder=holder.name,
            alive=alive,
        )

    def _job(self, task: Task, whole: Task | None, made_s: float, forecast: Mapping[str, Expected]) -> JobView:
        name, stored = task.job.name, self._jobs[task.job.name]
        asked = None if stored.request is None else self._asked.get(stored.request)
        submission = self._submission(name, stored.content)
        shares = whole is not None and task.status == "merged"
        home = self._jobs[whole.job.name] if shares and whole is not None else stored
        started_s = whole.started_s if whole is not None else task.started_s
        expected = forecast.get(task.into or name)
        found = JobView(
            name=name,
            tenant=stored.tenant,
            user=stored.user,
            uid=stored.uid,
            status=task.status,
            attempt=task.attempt,
            gpus=task.gpus,
            width=task.width or (expected.gpus if expected else None),
            widths=submission.gpus,
            submitted_s=task.submitted_s if asked is None else asked.made_s - made_s,
            started_s=started_s,
            ended_s=task.ended_s,
            start_s=_first(started_s, expected.start_s if expected else None),
            end_s=_first(task.ended_s, expected.end_s if expected else None),
            reason="" if task.status == "ended" else task.reason,  # of an attempt before
            output_dir=stored.output_dir,
            journal_dir=home.output_dir,
            tasks=tuple(f"{name}.{one}" if shares else one for one in submission.tasks),
            trials=submission.trials,
            merged_into=task.into,
            members=task.members,
        )
        if task.status in OVER:  # nothing changes any more
            self._over[name] = found
        return found

    def _untaken(self, one: Request, made_s: float, refused: str | None) -> JobView:
        name = job_name(one)
        submission = self._submission(name, one.content)
        return JobView(
            name=name,
            tenant=one.tenant or "",
            user=one.user,
            uid=one.uid,
            status="submitted" if refused is None else "refused",
            widths=submission.gpus,
            submitted_s=one.made_s - made_s,
            reason=refused or "",
            output_dir=submission.output_dir,
            journal_dir=submission.output_dir,
            tasks=submission.tasks,
            trials=submission.trials,
        )

    def _submission(self, name: str, content: str) -> Submission:
        if name not in self._submissions:
            try:
                self._submissions[name] = Submission.from_json(content)
            except pydantic.ValidationError:  # refused, or it failed for that
                self._submissions[name] = Submission("", "", (), (), 0, 0.0, "")
        return self._submissions[name]


def _first(known: float | None, expected: float | None) -> float | None:
    return expected if known is None else known


def _tenants(scheduler: Scheduler, policy: Policy) -> tuple[TenantView, ...]:
    tasks = list(scheduler.tasks.values())
    names = dict.fromkeys((*policy.tenants, *(task.job.tenant for task in tasks)))
    waiting = Counter(task.job.tenant for task in tasks if task.status == "waiting")
    running = Counter(task.job.tenant for task in tasks if task.status in ON_GPUS)
    return tuple(
        TenantView(
            name=name,
            weight=policy.tenant(name).weight,
            quota=policy.tenant(name).quota,
            gpus=scheduler.state.shares.held(name),
            gpu_s=scheduler.gpu_s(name),
            waiting=waiting[name],
            running=running[name],
        )
        for name in names
    )
