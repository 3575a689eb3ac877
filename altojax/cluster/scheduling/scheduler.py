"""The scheduler: a pure state machine that takes events in and gives decisions out.

State is a function of the records alone, events and decisions. So a store that commits events with the decisions that
follow from them in one transaction can be replayed: after a crash the scheduler is what it was, and decides the same.
Decisions are carried out after the commit. There is no clock and no chance: time is what events say.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from altojax.cluster.scheduling.bounded_wait import holds
from altojax.cluster.scheduling.dispatch import starts
from altojax.cluster.scheduling.moves import moves
from altojax.cluster.scheduling.plan_forecast import Expected, forecast
from altojax.cluster.scheduling.planning.energy_bound import energy_bound
from altojax.cluster.scheduling.planning.problem import problem_of
from altojax.cluster.scheduling.policy import Policy
from altojax.cluster.scheduling.records import Decision, GiveUp, PlanMade, Record, SchedulerEvent, Stop
from altojax.cluster.scheduling.replan import busy, replan, to_plan
from altojax.cluster.scheduling.resources.nodes import Cluster
from altojax.cluster.scheduling.resources.task import Task
from altojax.cluster.scheduling.state import SchedulerState


@dataclass(frozen=True)
class Gap:
    """The forecast against a lower bound on any schedule.

    Attributes:
        makespan_s: Seconds from now to the end of all tasks that run or wait, as expected.
        bound_s: The energy bound of the same: no schedule ends sooner, by today's estimates.
    """

    makespan_s: float
    bound_s: float

    @property
    def share(self) -> float:
        """0.02 is two percent above the bound."""
        return self.makespan_s / self.bound_s - 1.0 if self.bound_s else 0.0


class Scheduler:
    """Decides which task gets which GPUs, and when.

    Args:
        cluster: Nodes that are there from the beginning; others come with `NodeChanged`.
        policy: How to schedule.
    """

    def __init__(self, cluster: Cluster, policy: Policy | None = None) -> None:
        self.state = SchedulerState(cluster, policy or Policy())

    def handle(self, *events: SchedulerEvent) -> list[Decision]:
        """Takes in events that happened at the same time, or nearly, and decides once.

        Returns:
            The decisions, which have been applied. To be committed together with the events, and then carried out.
        """
        for event in events:
            self.apply(event)
        return self.decide()

    def apply(self, record: Record) -> None:
        """Takes in one record of a log, an event or a decision, and decides nothing."""
        self.state.apply(record)

    def decide(self) -> list[Decision]:
        """Decides what follows from what was applied, and applies it, until nothing more does."""
        made: list[Decision] = []
        count = -1
        while count < len(made):
            count = len(made)
            for decision in self._decisions():
                self.state.apply(decision)
                made.append(decision)
        return made

    @property
    def tasks(self) -> Mapping[str, Task]:
        """All tasks by name, merged ones too, in the order in which they came; to be read only."""
        return self.state.tasks

    @property
    def cluster(self) -> Cluster:
        """The nodes of the cluster now."""
        return self.state.cluster

    @property
    def plan(self) -> PlanMade | None:
        """The newest plan."""
        return self.state.plan

    def gpu_s(self, tenant: str) -> float:
        """GPU-seconds that a tenant's attempts have used until now."""
        running = (self.tasks[name] for name in self.state.occupancy.running)
        since_s = (task.width * (self.state.now_s - task.began_s) for task in running if task.job.tenant == tenant)
        return self.state.shares.gpu_s(tenant) + sum(since_s)

    def forecast(self) -> Mapping[str, Expected]:
        """Predicted starts and ends of running and waiting tasks."""
        return forecast(self.state)

    def gap(self, expected: Mapping[str, Expected] | None = None) -> Gap:
        """The predicted end of all tasks against the energy bound.

        Args:
            expected: A forecast, where it is at hand.
        """
        state = self.state
        ends_s = [one.end_s for one in (self.forecast() if expected is None else expected).values()]
        problem = problem_of(to_plan(state), state.cluster, busy(state), state.now_s)
        return Gap(max(ends_s, default=state.now_s) - state.now_s, energy_bound(problem))

    def _decisions(self) -> Iterator[Decision]:
        yield from self._settlements()
        yield from holds(self.state)
        yield from replan(self.state)
        yield from starts(self.state)
        yield from moves(self.state)

    def _settlements(self) -> Iterator[Stop | GiveUp]:
        """Decisions on users' requests, and on tasks that have failed too often."""
        state = self.state
        for name in list(state.unsettled):
            task = state.tasks[name]
            if task.status == "running":
                yield Stop(state.now_s, name, task.attempt, "cancelled" if task.wish == "cancel" else "paused")
            elif state.gave_out(task):
                times = task.failures + task.node_failures
                yield GiveUp(state.now_s, name, f"failed {times} times, the last time: {task.reason}")
