"""A simulated cluster: tasks train, end, save and die as a workload says, and decisions are carried out on it.

It plays what an engine and its workers are to the orchestrator, and like them runs on whatever becomes of it: carrying
a decision out a second time does nothing, and events are reported again until they were taken.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from altojax.cluster.scheduling.records import (
    Decision,
    Ended,
    Failed,
    GiveUp,
    Halted,
    Merge,
    NodeChanged,
    Progressed,
    SchedulerEvent,
    Start,
    Started,
    Stop,
    Submitted,
    UserAsked,
)
from altojax.cluster.scheduling.resources.job import Job
from altojax.cluster.scheduling.resources.nodes import Gpus
from altojax.cluster.simulation.arrivals import Arrival
from altojax.cluster.simulation.workload import Workload

_DONE = 1e-9
"""Share of a task's samples below which rounding is all that is left."""


@dataclass
class Truth:
    """True speeds and lengths of a submitted task.

    Attributes:
        speeds: Samples a second by GPUs.
        asked: Samples that it would train on without early exit.
        samples: Samples that it trains on.
        setup_s: Seconds from a start to the first sample.
        saved: Samples in its last checkpoint.
        over: Whether it has ended or was given up.
    """

    speeds: Mapping[int, float]
    asked: float
    samples: float
    setup_s: float
    saved: float = 0.0
    over: bool = False


@dataclass
class SimulatedRun:
    """An attempt.

    Attributes:
        job: Its task.
        attempt: Its number.
        gpus: Where.
        start_s: When it started.
        end_s: When its GPUs were free again; infinite while it runs.
        trained_s: Seconds of training that were not lost.
        outcome: Empty while it runs.
    """

    job: str
    attempt: int
    gpus: Gpus
    start_s: float
    end_s: float = float("inf")
    trained_s: float = 0.0
    outcome: str = ""

    @property
    def width(self) -> int:
        """GPUs that it is on."""
        return sum(map(len, self.gpus.values()))


class _Due(NamedTuple):
    at_s: float
    number: int
    kind: str
    name: str
    attempt: int = 0


class SimulatedCluster:
    """Tasks and nodes of a workload."""

    def __init__(self, workload: Workload, tasks: Sequence[Arrival], asked: Sequence[SchedulerEvent] = ()) -> None:
        """Begins before anything happens.

        Args:
            workload: As loaded.
            tasks: Its tasks.
            asked: Other events, such as what users ask for.
        """
        self.runs: dict[tuple[str, int], SimulatedRun] = {}
        self.truths: dict[str, Truth] = {}
        self.ends_s: dict[str, float] = {}
        self._workload = workload
        self._arrivals = {one.job.name: one for one in tasks}
        self._numbers = {name: number for number, name in enumerate(self._arrivals)}
        self._members: dict[str, tuple[str, ...]] = {}
        self._now: dict[str, SimulatedRun] = {}
        self._stopping: set[tuple[str, int]] = set()
        self._asked = list(asked)
        self._due: list[_Due] = []
        self._counter = 0
        self._left = len(tasks)
        self._told: list[SchedulerEvent] = []
        self._nodes = {
            node: np.random.default_rng([workload.seed, 1, number]) for number, node in enumerate(workload.cluster)
        }
        for one in tasks:
            self._at(one.at_s, "arrive", one.job.name)
        for number, event in enumerate(self._asked):
            self._at(event.at_s, "asked", str(number))
        for node in workload.cluster:
            self._node_fails_next(node, 0.0)

    def events(self) -> list[SchedulerEvent]:
        """Advances to the next moment at which something happens, and reports it; again until it was `taken`.

        Returns:
            Nothing where all tasks are over.
        """
        while not self._told and self._left and self._due:
            at_s = self._due[0].at_s
            while self._due and self._due[0].at_s == at_s:
                self._happens(heapq.heappop(self._due))
        return list(self._told)

    def taken(self) -> None:
        """The reported events are stored for good."""
        self._told.clear()

    def carry_out(self, decision: Decision) -> None:
        """Does what was decided; a second time it does nothing."""
        match decision:
            case Start():
                if (decision.job, decision.attempt) not in self.runs:
                    self._start(decision)
            case Stop():
                run = self._now.get(decision.job)
                key = decision.job, decision.attempt
                if run is not None and run.attempt == decision.attempt and key not in self._stopping:
                    self._stopping.add(key)
                    self._train_until(run, decision.at_s)
                    self._at(decision.at_s + self._workload.policy.park_s, "halted", *key)
            case Merge():
                self._merge(decision)
            case GiveUp():
                self._over(decision.job, "gave up", None)

    def _at(self, at_s: float, kind: str, name: str, attempt: int = 0) -> None:
        self._counter += 1
        heapq.heappush(self._due, _Due(at_s, self._counter, kind, name, attempt))

    def _happens(self, due: _Due) -> None:
        match due.kind:
            case "arrive":
                one = self._arrivals[due.name]
                self.truths[due.name] = Truth(one.speeds, one.job.samples, one.samples, one.job.setup_s)
                self._told.append(Submitted(due.at_s, one.job))
            case "asked":
                event = self._asked[int(due.name)]
                self._told.append(event)
                if isinstance(event, UserAsked) and event.wish == "cancel":
                    self._over(event.job, "cancelled", None)
            case "node":
                self._node_fails(due)
            case "repaired":
                self._told.append(NodeChanged(due.at_s, due.name, self._workload.cluster[due.name]))
                self._node_fails_next(due.name, due.at_s)
            case _:
                run = self._now.get(due.name)
                if run is None or run.attempt != due.attempt:
                    return
                if ((due.name, due.attempt) in self._stopping) != (due.kind == "halted"):
                    return
                self._run_happens(run, due)

    def _run_happens(self, run: SimulatedRun, due: _Due) -> None:
        truth, at_s = self.truths[run.job], due.at_s
        match due.kind:
            case "started":
                self._told.append(Started(at_s, run.job, run.attempt))
            case "known":
                left = truth.samples - truth.saved - self._trained(run, at_s)
                self._told.append(Progressed(at_s, run.job, left, {run.width: truth.speeds[run.width]}))
            case "ended":
                self._train_until(run, at_s)
                self._leaves(run, at_s, "ended")
                self._over(run.job, "ended", at_s)
                self._told.append(Ended(at_s, run.job, run.attempt))
            case "halted":
                self._leaves(run, at_s, "halted")
                self._told.append(Halted(at_s, run.job, run.attempt, self._believed(truth)))
            case "crashed":
                self._fails(run, at_s, "task", "crashed")

    def _start(self, decision: Start) -> None:
        run = SimulatedRun(decision.job, decision.attempt, decision.gpus, decision.at_s)
        self.runs[decision.job, decision.attempt] = self._now[decision.job] = run
        truth, policy = self.truths[decision.job], self._workload.policy
        starts_s = decision.at_s + truth.setup_s + (policy.resume_s if decision.attempt > 1 else 0.0)
        speed, left = truth.speeds[run.width], truth.samples - truth.saved
        key = decision.job, decision.attempt
        self._at(starts_s, "started", *key)
        self._at(starts_s + left / speed, "ended", *key)
        known_after = self._workload.known_after
        if known_after is not None and truth.saved < known_after * truth.samples:
            self._at(starts_s + (known_after * truth.samples - truth.saved) / speed, "known", *key)
        every_s = self._workload.failures.task_every_s
        if every_s is not None:
            drawn = np.random.default_rng([self._workload.seed, 2, self._number(decision.job), decision.attempt])
            after_s = float(drawn.exponential(every_s))
            if after_s < left / speed:
                self._at(starts_s + after_s, "crashed", *key)

    def _number(self, name: str) -> int:
        return self._numbers.get(name, self._numbers[self._members[name][0]] if name in self._members else 0)

    def _trained(self, run: SimulatedRun, at_s: float) -> float:
        """Samples that a run has trained on, and not saved, by a time."""
        truth = self.truths[run.job]
        setup_s = truth.setup_s + (self._workload.policy.resume_s if run.attempt > 1 else 0.0)
        trained_s = max(0.0, at_s - run.start_s - setup_s)
        return min(trained_s * truth.speeds[run.width], truth.samples - truth.saved)

    def _train_until(self, run: SimulatedRun, at_s: float, lost_after_s: float | None = None) -> None:
        """Saves what a run has trained on by a time, or by its last checkpoint."""
        truth = self.truths[run.job]
        trained = self._trained(run, at_s)
        if lost_after_s is not None:
            each = lost_after_s * truth.speeds[run.width]
            trained = (trained // each) * each
        run.trained_s = trained / truth.speeds[run.width]
        truth.saved += trained
        if truth.samples - truth.saved <= _DONE * truth.samples:
            truth.saved = truth.samples

    def _believed(self, truth: Truth) -> float:
        """Samples that a task is expected to need by who does not know when early exit will end its trials."""
        known_after = self._workload.known_after
        known = known_after is not None and truth.saved >= known_after * truth.samples
        return (truth.samples if known else truth.asked) - truth.saved

    def _leaves(self, run: SimulatedRun, at_s: float, outcome: str) -> None:
        run.end_s, run.outcome = at_s, outcome
        del self._now[run.job]
        self._stopping.discard((run.job, run.attempt))

    def _fails(self, run: SimulatedRun, at_s: float, blame: str, reason: str) -> None:
        if (run.job, run.attempt) not in self._stopping:
            self._train_until(run, at_s, lost_after_s=self._workload.failures.checkpoint_s)
        self._leaves(run, at_s, "failed")
        believed = self._believed(self.truths[run.job])
        self._told.append(Failed(at_s, run.job, run.attempt, reason, believed, "node" if blame == "node" else "task"))

    def _node_fails_next(self, node: str, at_s: float) -> None:
        every_s = self._workload.failures.node_every_s
        if every_s is not None:
            self._at(at_s + float(self._nodes[node].exponential(every_s)), "node", node)

    def _node_fails(self, due: _Due) -> None:
        self._told.append(NodeChanged(due.at_s, due.name, 0))
        for run in [run for run in self._now.values() if due.name in run.gpus]:
            self._fails(run, due.at_s, "node", f"{due.name} is gone")
        self._at(due.at_s + self._workload.failures.repair_s, "repaired", due.name)

    def _merge(self, decision: Merge) -> None:
        into: Job = decision.into
        if into.name not in self.truths:
            samples = sum(self.truths[name].samples for name in decision.jobs)
            self._members[into.name] = decision.jobs
            self.truths[into.name] = Truth(into.speeds, into.samples, samples, into.setup_s)

    def _over(self, name: str, outcome: str, at_s: float | None) -> None:
        truth = self.truths[name]
        if truth.over:
            return
        truth.over = True
        if name not in self._members:
            self._left -= 1
            if at_s is not None:
                self.ends_s[name] = at_s
        elif outcome == "ended":
            for member in self._members[name]:
                self._over(member, outcome, at_s)
