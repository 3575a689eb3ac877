"""The loop that joins a queue, a scheduler and an engine.

Requests, reports of the engine and progress of running tasks become events; the scheduler decides; events and decisions
are committed together; only then are decisions carried out. What a predecessor had committed and may not have carried
out is carried out again, which changes nothing where it had been.

A failure on behalf of one task ends that task's attempt with a reason, or is reported and ignored where the
attempt itself goes well; only the store, the lease and the engine as a whole may end the loop.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from altojax.cluster.engines.engine import Blame, Engine, Order, Report
from altojax.cluster.engines.faults import reason_of
from altojax.cluster.engines.supervised import SupervisedEngine
from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.scheduling.records import (
    Ended,
    Failed,
    GiveUp,
    Halted,
    Merge,
    NodeChanged,
    Progressed,
    Record,
    SchedulerEvent,
    Start,
    Stop,
    is_sound,
)
from altojax.cluster.scheduling.resources.job import MOST
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.scheduling.resources.task import ON_GPUS, OVER, Task
from altojax.cluster.scheduling.scheduler import Scheduler
from altojax.cluster.service.access import Access
from altojax.cluster.service.job_folder import prepare
from altojax.cluster.service.progress_monitor import ProgressMonitor, RunStanding, read_standing
from altojax.cluster.service.queue import lease
from altojax.cluster.service.queue.store import Answer, Store, StoredJob
from altojax.cluster.service.queue.stored_forecast import forecast_of
from altojax.cluster.service.queue.submission import Submission
from altojax.cluster.service.reception import AT_ONCE, Reception
from altojax.cluster.service.request_handler import Desk
from altojax.cluster.service.shared_runs.delivery import deliver
from altojax.cluster.service.shared_runs.delivery_thread import Deliveries
from altojax.cluster.service.shared_runs.merged_tasks import merged_submission
from altojax.cluster.service.speeds import Speeds
from altojax.cluster.task_estimates.speed_profile import Profile
from altojax.cluster.tenancy.members import Members
from altojax.config.tune_config import TuneConfig
from jaxrun.process.errors import UserError
from jaxrun.store.records import record_errors

FORECASTS = 0.05
"""Share of the time that is spent on forecasts, at most."""


class Orchestrator:
    """One orchestrator of one queue, for as long as it has the lease."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        policy: Policy,
        members: Members,
        *,
        tell: Callable[[Record], None],
        say: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.time,
        access: Access | None = None,
    ) -> None:
        """Restores the scheduler from the queue's records; starts and stops nothing yet.

        Args:
            store: The queue's, whose lease was taken.
            engine: Where tasks run.
            policy: How they are scheduled.
            members: Who belongs to which tenant.
            tell: Called with every record that was committed.
            say: Told in a line of what goes wrong and ends nothing.
            clock: Seconds since the epoch.
            access: As whom tasks run, and what they are granted; None is as who serves, and nothing but defaults.
        """
        self.store, self.engine, self.policy = store, SupervisedEngine(engine), policy
        self.scheduler = Scheduler(Cluster({}), policy)
        self.jobs: dict[str, StoredJob] = {}
        self._submissions: dict[str, Submission] = {}
        self._configs: dict[str, TuneConfig] = {}
        self._tell, self._say, self._clock = tell, say, clock
        self._said: set[str] = set()
        self._unstarted: list[Failed] = []
        self._made_s, self._last, self._now_s = store.made_s, 0, 0.0
        self._taken = store.taken
        self._reception = Reception(store, members, say)
        self._monitor = ProgressMonitor(self._made_s)
        self._speeds = Speeds(store.profiles())
        self._access = access or Access()
        self._desk = Desk(store.folder, members, self.jobs, self.scheduler, policy, self._speeds, self._access)
        self._deliveries = Deliveries()
        self._renew_s = self._publish_s = 0.0
        self._changed = True
        store.set("policy", policy.model_dump(mode="json"))
        store.set("tenants", members.tenants)
        for _, job in store.jobs():
            self.jobs[job.name] = job
        self._starts: dict[tuple[str, int], int] = {}
        with record_errors(store.path):
            for number, record in store.records():
                self.scheduler.apply(record)
                self._last, self._now_s = number, max(self._now_s, record.at_s)
                if isinstance(record, Start):
                    self._starts[record.job, record.attempt] = number
            if self.scheduler.tasks.keys() != self.jobs.keys():
                raise ValueError("not every task that was stored was scheduled, or the other way round")

    def recover(self) -> int:
        """Adopts a predecessor's attempts, and carries out decisions that it may not have; returns how many run."""
        carried = self.store.carried
        running = self.running
        known = [task for task in running if self._starts[task.job.name, task.attempt] <= carried]
        self.engine.adopt([self._order(task.job.name, task.attempt, task) for task in known])
        for task in running:
            if task not in known:
                self._start(task.job.name, task.attempt, task)
        for task in running:
            if task.status == "stopping":
                self.engine.stop(task.job.name, task.attempt)
        self.store.mark_carried(self._last)
        for name in self.jobs:
            self._tidy(name)
        self._commit([])  # what a change of the policy, or a predecessor that was stopped, has left to decide
        return len(running)

    def turn(self) -> bool:
        """Handles all that has happened since the last call; returns whether anything had.

        Raises:
            UserError: Another orchestrator has taken over, or the store cannot be written.
        """
        if self._clock() >= self._renew_s:
            self.store.renew()
            self._renew_s = self._clock() + lease.SPAN_S / 3
        happened = self._handle([*self._node_changes(), *self._reports(), *self._delivered()])
        happened |= self._take_requests()
        happened |= self._handle(self._progress())
        if self._changed and self._clock() >= self._publish_s:
            self._publish()
        return happened

    @property
    def idle(self) -> bool:
        """Whether all tasks are over, or paused, and no request waits."""
        resting = (*OVER, "paused")
        rests = all(task.status in resting for task in self.scheduler.tasks.values())
        return rests and not (self.store.requests(self._taken, most=1) or self._reception.waits)

    @property
    def running(self) -> list[Task]:
        """Tasks that are on GPUs."""
        return [task for task in self.scheduler.tasks.values() if task.status in ON_GPUS]

    def halt(self) -> None:
        """Asks all running attempts to save and stop."""
        for task in self.running:
            self.engine.stop(task.job.name, task.attempt)

    def wind_down(self) -> None:
        """Records the ends of running tasks, and decides nothing: that is left to the next orchestrator."""
        self.store.renew()
        events = [*self._reports(), *self._delivered()]
        for event in events:
            self.scheduler.apply(event)
        self._record(events)

    def close(self) -> None:
        """Releases everything. Attempts in other processes keep running; deliveries not begun are the next one's."""
        self._deliveries.close()
        self._reception.close()
        self.engine.close()

    def _now(self) -> float:
        self._now_s = max(self._now_s, self._clock() - self._made_s)
        return self._now_s

    def _handle(self, events: Sequence[SchedulerEvent]) -> bool:
        if events:
            self._commit(events)
        return bool(events)

    def _commit(
        self,
        events: Sequence[SchedulerEvent],
        jobs: Sequence[StoredJob] = (),
        answers: Sequence[Answer] = (),
        taken: int | None = None,
    ) -> None:
        decisions = self.scheduler.handle(*events)
        merged = [self._merged(decision) for decision in decisions if isinstance(decision, Merge)]
        self.jobs.update({job.name: job for job in merged})
        self._record([*events, *decisions], [*jobs, *merged], answers, taken)
        for_engine = [decision for decision in decisions if isinstance(decision, Start | Stop)]
        for decision in for_engine:
            if isinstance(decision, Start):
                self._start(decision.job, decision.attempt, self.scheduler.tasks[decision.job])
            else:
                self.engine.stop(decision.job, decision.attempt)
        if for_engine:
            self.store.mark_carried(self._last)

    def _record(
        self,
        records: Sequence[Record],
        jobs: Sequence[StoredJob] = (),
        answers: Sequence[Answer] = (),
        taken: int | None = None,
    ) -> None:
        if records or answers:
            self._last = self.store.commit(records, jobs=jobs, answers=answers, taken=taken)
            self._changed = True
        for record in records:
            self._tell(record)
            if isinstance(record, Ended | Halted | Failed | GiveUp):
                self._monitor.forget(record.job)
                self._tidy(record.job)

    def _publish(self) -> None:
        """Stores the forecast for all readers, since computing it takes longer than reading it."""
        begun_s = self._clock()
        self.store.set("forecast", forecast_of(self.scheduler))
        now_s = self._clock()
        self._changed, self._publish_s = False, now_s + (now_s - begun_s) / FORECASTS

    def _start(self, job: str, attempt: int, task: Task) -> None:
        order = self._order(job, attempt, task)
        try:
            prepare(order, self._config(job), self._access.roots(self.jobs[job].tenant))
        except Exception as error:
            blame: Blame = "node" if isinstance(error, OSError | UserError) else "task"
            reason = f"cannot be started: {reason_of(error)}"
            self._unstarted.append(Failed(self._now(), job, attempt, reason, task.job.samples, blame))
            return
        self.engine.start(order)

    def _order(self, job: str, attempt: int, task: Task) -> Order:
        return Order(job, attempt, self.folder_of(job), task.gpus, self._access.uid(self.jobs[job].uid))

    def folder_of(self, job: str) -> Path:
        """The folder of a task's attempts and their logs."""
        return self.store.folder / "jobs" / job

    def _node_changes(self) -> list[SchedulerEvent]:
        there, known = self.engine.nodes(), self.scheduler.cluster.nodes
        changed = {node: there.get(node, 0) for node in (*there, *known) if there.get(node, 0) != known.get(node, 0)}
        return [NodeChanged(self._now(), node, gpus) for node, gpus in changed.items()]

    def _reports(self) -> list[SchedulerEvent]:
        events: list[SchedulerEvent] = [*self._unstarted]
        self._unstarted = []
        for report in self.engine.poll():
            task = self.scheduler.tasks.get(report.job)
            if task is None or task.attempt != report.attempt or task.status not in ON_GPUS:
                continue
            if report.outcome == "ended":
                events += self._learn(report.job)
            if report.outcome == "ended" and task.members:
                self._deliveries.begin((report.job, report.attempt), partial(self._deliver, task))
            else:
                events.append(self._event_of(report, task))
        return events

    def _event_of(self, report: Report, task: Task) -> SchedulerEvent:
        now_s, key = self._now(), (report.job, report.attempt)
        if report.outcome == "ended":
            return Ended(now_s, *key)
        left = self._left(task)
        if report.outcome == "halted":
            return Halted(now_s, *key, left)
        return Failed(now_s, *key, report.reason, left, report.blame)

    def _left(self, task: Task) -> float:
        name = task.job.name

        def look() -> RunStanding | None:
            return read_standing(Path(self._config(name).output_dir), self._config(name).early_exit)

        standing = self._pass_over(name, "its progress cannot be read", look)
        left = None if standing is None else standing.left
        return left if left is not None and 0 <= left <= MOST else task.job.samples

    def _pass_over[Found](self, name: str, words: str, call: Callable[[], Found]) -> Found | None:
        """Returns a call's result from a task's files, or None after a failure, which is reported once."""
        try:
            with self._access.of(self.jobs[name]):
                return call()
        except Exception as error:
            line = f"{name}: {words}: {reason_of(error)}"
            if line not in self._said:
                self._said.add(line)
                self._say(line)
            return None

    def _deliver(self, task: Task) -> None:
        for name in task.members:
            if self.scheduler.tasks[name].status == "merged":
                with self._access.of(self.jobs[name]):
                    deliver(Path(self.jobs[task.job.name].output_dir), name, self._config(name))

    def _tidy(self, name: str) -> None:
        """Removes a shared run once it is over: its tasks have what is theirs, or run again each for itself."""
        if self.jobs[name].members and self.scheduler.tasks[name].status in OVER:
            self._deliveries.remove(Path(self.jobs[name].output_dir))

    def _delivered(self) -> list[SchedulerEvent]:
        events: list[SchedulerEvent] = []
        for key, reason in self._deliveries.over():
            if reason:
                events.append(Failed(self._now(), *key, f"cannot be delivered: {reason}", 0.0))
            else:
                events.append(Ended(self._now(), *key))
        return events

    def _take_requests(self) -> bool:
        self._reception.collect()
        found = self.store.requests(self._taken, most=AT_ONCE)
        if not found:
            return False
        now_s, events, jobs, answers = self._now(), [], [], []
        for request in found:
            taken = self._desk.take(request, now_s)
            answers.append(taken.answer)
            if taken.event is not None:
                events.append(taken.event)
            if taken.job is not None:
                jobs.append(taken.job)
                self.jobs[taken.job.name] = taken.job
        self._commit(events, jobs, answers, found[-1].id)
        self._taken = found[-1].id
        self._reception.answer(answers)
        return True

    def _progress(self) -> list[SchedulerEvent]:
        events: list[SchedulerEvent] = []
        for task in self.running:
            name = task.job.name
            if task.status == "running" and self._monitor.is_due(name):
                events += self._pass_over(name, "its progress cannot be read", partial(self._look, task)) or []
                events += self._learn(name)
        return [event for event in events if is_sound(event)]

    def _look(self, task: Task) -> list[SchedulerEvent]:
        config = self._config(task.job.name)
        return self._monitor.look(task, Path(config.output_dir), config.early_exit, self._now())

    def _learn(self, name: str) -> list[SchedulerEvent]:
        """Stores the speed that a task has measured, and returns the events by which waiting tasks' speeds change."""
        words, stored = "its speed cannot be predicted", self.jobs[name]
        learn = partial(self._speeds.learn, stored.tenant, Path(stored.output_dir))
        profile = self._pass_over(name, words, lambda: learn(self._submission(name)))
        if profile is None:
            return []
        self.store.put_profiles({profile.key: profile.model_dump_json()})
        waiting = [task for task in self.scheduler.tasks.values() if task.status == "waiting" and not task.members]
        found = [self._pass_over(task.job.name, words, partial(self._expect, task, profile)) for task in waiting]
        return [event for event in found if event is not None and is_sound(event)]

    def _expect(self, task: Task, profile: Profile) -> SchedulerEvent | None:
        submission = self._submission(task.job.name)
        if not self._speeds.concerns(profile, task.job.tenant, submission):
            return None
        speeds = self._speeds.speeds(task.job.tenant, submission)
        return Progressed(self._now(), task.job.name, task.job.samples, speeds)

    def _config(self, name: str) -> TuneConfig:
        if name not in self._configs:
            self._configs[name] = TuneConfig.model_validate_json(self._submission(name).config)
        return self._configs[name]

    def _submission(self, name: str) -> Submission:
        if name not in self._submissions:
            self._submissions[name] = Submission.from_json(self.jobs[name].content)
        return self._submissions[name]

    def _merged(self, merge: Merge) -> StoredJob:
        first = self.jobs[merge.jobs[0]]
        output_dir = str(self.folder_of(merge.into.name) / "run")

        def content() -> str:
            members = {name: (self._submission(name), self._config(name)) for name in merge.jobs}
            return merged_submission(members, output_dir).to_json()

        # Without it the shared run cannot start; then each of them runs for itself.
        found = self._pass_over(first.name, f"cannot be merged into {merge.into.name}", content) or ""
        owner = first.tenant, first.uid, first.user
        return StoredJob(merge.into.name, None, *owner, output_dir, found, merge.jobs)
