"""The scheduler's state: a function of the records alone, so that replaying a log restores it."""

import copy
from dataclasses import replace

from altojax.cluster.scheduling.baselines import RULES
from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.scheduling.records import (
    Ended,
    Failed,
    GiveUp,
    Halted,
    Hold,
    Merge,
    NodeChanged,
    PlanMade,
    Progressed,
    Record,
    Start,
    Started,
    Stop,
    Submitted,
    UserAsked,
)
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.scheduling.resources.occupancy import Occupancy
from altojax.cluster.scheduling.resources.task import ON_GPUS, OVER, Status, Task
from altojax.cluster.scheduling.resources.tenants import FairShares
from altojax.cluster.scheduling.waiting_tasks import Waiting, WaitingTask

_SURPRISE = 0.02
"""Share of an attempt's length by which its end may be off before the plan counts as changed."""


class SchedulerState:
    """Tasks, GPUs and shares.

    Attributes:
        policy: How to schedule.
        rule: What puts tasks in order that no plan has.
        tasks: By name, in the order in which they came.
        waiting: Those that wait and have a width that the cluster and their quota hold.
        occupancy: Who is on which GPU.
        shares: What tenants have used and hold.
        now_s: Time of the newest record.
        plan: The newest plan.
        changes: What happened since then that it did not foresee.
        overdue: The task that has waited too long and for which GPUs are held, if there is one.
        unsettled: Tasks whose wish or failures ask for a decision.
    """

    def __init__(self, cluster: Cluster, policy: Policy) -> None:
        self.policy = policy
        self.rule = RULES[policy.plan]
        self.tasks: dict[str, Task] = {}
        self.waiting = Waiting()
        self.occupancy = Occupancy(cluster)
        self.shares = FairShares(policy.tenants)
        self.now_s = 0.0
        self.plan: PlanMade | None = None
        self.changes = 0
        self.overdue: str | None = None
        self.unsettled: dict[str, None] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._widths: dict[tuple[str, tuple[int, ...]], list[int]] = {}

    @property
    def cluster(self) -> Cluster:
        """The nodes of the cluster now."""
        return self.occupancy.cluster

    def apply(self, record: Record) -> None:
        """Takes a record in; what an older attempt or an unknown task reports changes nothing but the time."""
        self.now_s = max(self.now_s, record.at_s)
        match record:
            case Submitted():
                self._submitted(record)
            case NodeChanged():
                self._node_changed(record)
            case PlanMade():
                self._planned(record)
            case Merge():
                self._merged(record)
            case _:
                task = self.tasks.get(record.job)
                if task is not None:
                    self._told(task, record)

    def widths(self, task: Task) -> list[int]:
        """The widths that the cluster and the tenant's quota hold, whatever else runs."""
        key = task.job.tenant, tuple(task.job.speeds)
        widths = self._widths.get(key)
        if widths is None:
            quota = self.policy.tenant(task.job.tenant).quota or self.cluster.gpus
            widths = [width for width in sorted(task.job.speeds) if width <= quota and self.cluster.holds(width)]
            self._widths[key] = widths
        return widths

    def job_now(self, task: Task) -> Job:
        """The task as it would start now: with the widths that it may have, and what it costs to resume."""
        resume_s = self.policy.resume_s if task.attempt else 0.0
        speeds = {width: task.job.speeds[width] for width in self.widths(task)}
        return replace(task.job, speeds=speeds, setup_s=task.job.setup_s + resume_s)

    def copy(self) -> "SchedulerState":
        """Returns a state that changes on its own, with the tasks that wait or are on GPUs alone."""
        other = SchedulerState(self.cluster, self.policy)
        for name, task in self.tasks.items():
            if task.status in ("waiting", *ON_GPUS):
                other.tasks[name] = copy.copy(task)
                other.tasks[name].members = ()
        other.occupancy, other.shares, other.now_s = self.occupancy.copy(), self.shares.copy(), self.now_s
        other.plan, other.changes, other.overdue = self.plan, self.changes, self.overdue
        other._places = self._places  # replaced by the next plan, never changed
        other.enqueue_all()
        return other

    def enqueue_all(self) -> None:
        """Puts every task that waits in its place anew."""
        for name, task in self.tasks.items():
            if task.status == "waiting":
                self._enqueue(name, task)

    def _submitted(self, record: Submitted) -> None:
        if record.job.name not in self.tasks:
            self._add(Task(record.job, len(self.tasks), record.at_s, record.at_s))

    def _add(self, task: Task) -> None:
        self.tasks[task.job.name] = task
        self._wait(task, task.waiting_s)

    def _node_changed(self, record: NodeChanged) -> None:
        holders = list(self.occupancy.holds)
        self.occupancy = self.occupancy.changed(record.node, record.gpus)
        for name in holders:
            if name not in self.occupancy.holds:
                self._forget_hold(self.tasks[name])
        self._widths.clear()
        self.changes += max(1, len(self.waiting))
        self.enqueue_all()

    def _planned(self, plan: PlanMade) -> None:
        self.plan, self.changes = plan, 0
        self._places = {
            name: (place, width) for place, (name, width) in enumerate(zip(plan.order, plan.widths, strict=True))
        }
        self.enqueue_all()

    def _merged(self, record: Merge) -> None:
        members = [self.tasks[name] for name in record.jobs]
        for member in members:
            self._stop_waiting(member)
            member.status, member.into = "merged", record.into.name
        self._add(
            Task(
                record.into,
                len(self.tasks),
                submitted_s=min(member.submitted_s for member in members),
                waiting_s=min(member.waiting_s for member in members),
                members=record.jobs,
            )
        )

    def _told(self, task: Task, record: Record) -> None:
        match record:
            case UserAsked():
                self._asked(task, record)
            case Progressed():
                self._progressed(task, record)
            case Hold():
                self._held(task, record)
            case Start():
                self._start(task, record)
            case GiveUp():
                self._gave_up(task, record)
            case Started() | Ended() | Halted() | Failed() | Stop():
                if record.attempt == task.attempt and task.status in ON_GPUS:
                    self._reported(task, record)

    def _reported(self, task: Task, record: Started | Ended | Halted | Failed | Stop) -> None:
        match record:
            case Started():
                task.set_up = True
                task.correct(record.at_s, task.job.samples, {})
                self.occupancy.expect(task.job.name, task.until_s)
            case Stop():
                task.status = "stopping"
                self.unsettled.pop(task.job.name, None)
            case Ended():
                off_s = abs(task.until_s - record.at_s)
                self.changes += off_s > _SURPRISE * (task.until_s - task.began_s)
                self._leave_gpus(task, record.at_s)
                self._end(task, "ended", record.at_s)
            case Halted():
                self._leave_gpus(task, record.at_s)
                self._again(task, record.at_s, record.samples)
            case Failed():
                task.reason = record.reason
                task.failures += record.blame == "task"
                task.node_failures += record.blame == "node"
                self._leave_gpus(task, record.at_s)
                self._again(task, record.at_s, record.samples)
                if task.status == "waiting" and self.gave_out(task):
                    self.unsettled[task.job.name] = None

    def gave_out(self, task: Task) -> bool:
        """Tells whether a task has failed too often to be tried again."""
        return task.failures > self.policy.retries or task.node_failures > self.policy.node_retries

    def _start(self, task: Task, start: Start) -> None:
        name, tenant = task.job.name, task.job.tenant
        self.waiting.drop(name)
        self._drop_hold(task)
        task.status, task.attempt = "running", start.attempt
        task.gpus, task.width = start.gpus, sum(map(len, start.gpus.values()))
        task.began_s, task.set_up, task.until_s = start.at_s, False, start.until_s
        task.charged_s = start.until_s - start.at_s
        task.started_s = start.at_s if task.started_s is None else task.started_s
        self.occupancy.take(name, start.gpus, start.until_s)
        self.shares.take(tenant, task.width, task.charged_s)

    def _leave_gpus(self, task: Task, at_s: float) -> None:
        width = task.width
        self.occupancy.release(task.job.name)
        self.shares.give(task.job.tenant, width, task.charged_s, at_s - task.began_s)
        if task.reserved:  # a hold for it stays, and now stands for all of its GPUs
            task.reserved += width
            self.shares.reserve(task.job.tenant, width)
        task.gpus, task.width, task.set_up = {}, 0, False

    def _again(self, task: Task, at_s: float, samples: float) -> None:
        """Puts a task that was on GPUs back into the queue, or rests it, as its user asked."""
        task.job = replace(task.job, samples=samples)
        task.status = "waiting"
        self.unsettled.pop(task.job.name, None)
        if task.wish == "cancel":
            self._end(task, "cancelled", at_s)
        elif task.wish == "pause":
            self._rest(task)
        else:
            self._wait(task, at_s, joins=False)

    def _wait(self, task: Task, since_s: float, *, joins: bool = True) -> None:
        task.status, task.waiting_s = "waiting", since_s
        self.changes += 1
        if joins:
            self.shares.join(task.job.tenant)
        self._enqueue(task.job.name, task)

    def _enqueue(self, name: str, task: Task) -> None:
        widths = self.widths(task)
        if not widths:
            self.waiting.drop(name)
            return
        place = self._places.get(name)
        if place is not None and place[1] in widths:
            rank, width = (0, float(place[0]), task.number), place[1]
        else:
            width = self.rule.width(task.job, widths)
            rank = (1, self.rule.key(task.job, width), task.number)
        self.waiting.put(WaitingTask(rank, name, task.job.tenant, width, task.waiting_s))

    def _stop_waiting(self, task: Task) -> None:
        self.waiting.drop(task.job.name)
        self._drop_hold(task)
        self.shares.leave(task.job.tenant)
        self.changes += 1

    def _rest(self, task: Task) -> None:
        self._stop_waiting(task)
        task.status = "paused"

    def _end(self, task: Task, status: Status, at_s: float) -> None:
        if task.status == "waiting":
            self.waiting.drop(task.job.name)
        if task.status != "paused":
            self.shares.leave(task.job.tenant)
        self.changes += status != "ended"
        self._drop_hold(task)
        task.status, task.ended_s = status, at_s
        self.unsettled.pop(task.job.name, None)
        for name in task.members:
            member = self.tasks[name]
            if member.status == "merged":
                member.status, member.ended_s = status, at_s

    def _gave_up(self, task: Task, record: GiveUp) -> None:
        task.reason = record.reason
        members, task.members = task.members, ()
        self._end(task, "failed", record.at_s)
        task.members = members
        # One of them may be at fault, and the others are not: each is tried for itself.
        for name in members:
            member = self.tasks[name]
            if member.status == "merged":
                member.alone, member.into, member.reason = True, None, record.reason
                member.status = "paused"
                if member.wish == "run":
                    self._wait(member, record.at_s)

    def _asked(self, task: Task, record: UserAsked) -> None:
        if task.status in OVER:
            return
        task.wish = "run" if record.wish == "resume" else record.wish
        if task.status != "merged":
            self._settle(task, record.at_s)
            return
        if task.wish == "cancel":
            task.status, task.ended_s = "cancelled", record.at_s
        whole = self.tasks[task.into or ""]
        wishes = {member.wish for name in whole.members if (member := self.tasks[name]).status == "merged"}
        whole.wish = "cancel" if not wishes else "pause" if wishes == {"pause"} else "run"
        self._settle(whole, record.at_s)

    def _settle(self, task: Task, at_s: float) -> None:
        """Does for a task what its user wants, where it needs no decision."""
        match task.status, task.wish:
            case (("waiting" | "paused"), "cancel"):
                self._end(task, "cancelled", at_s)
            case "waiting", "pause":
                self._rest(task)
            case "paused", "run":
                self._wait(task, at_s)
            case "running", ("pause" | "cancel"):
                self.unsettled[task.job.name] = None
            case "running", "run":
                self.unsettled.pop(task.job.name, None)

    def _progressed(self, task: Task, record: Progressed) -> None:
        if task.status in OVER:
            return
        before_s = task.until_s
        task.correct(record.at_s, record.samples, record.speeds)
        if task.status in ON_GPUS:
            self.occupancy.expect(task.job.name, task.until_s)
            self.changes += abs(task.until_s - before_s) > _SURPRISE * (before_s - task.began_s)
        elif task.status == "waiting":
            self.changes += 1
            self._enqueue(task.job.name, task)

    def _held(self, task: Task, record: Hold) -> None:
        self._drop_hold(task)
        self.occupancy.hold(task.job.name, record.gpus, record.until_s)
        task.reserved = sum(map(len, record.gpus.values())) - task.width
        self.shares.reserve(task.job.tenant, task.reserved)
        if task.status == "waiting":
            self.overdue = task.job.name
            self.changes += 1

    def _drop_hold(self, task: Task) -> None:
        if self.occupancy.held(task.job.name) is not None:
            self.occupancy.drop(task.job.name)
            self._forget_hold(task)

    def _forget_hold(self, task: Task) -> None:
        self.shares.reserve(task.job.tenant, -task.reserved)
        task.reserved = 0
        if self.overdue == task.job.name:
            self.overdue = None
