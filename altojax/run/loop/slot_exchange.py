"""Trials into slots and out of them: admission, parking, and the adapters kept of those that leave."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from altojax.device.executor import Executor
from altojax.device.slots import Snapshot
from altojax.packing.slot_admission import Load, admit
from altojax.run.run_times import RunTimes
from altojax.run.snapshots import OnDevice, Snapshots, on_host
from altojax.run.tasks.search import TaskSearch, fill_planned, proposable
from altojax.run.trial import Trial, TrialProgress
from jaxlm.devices.hosts import ALONE, Hosts
from jaxrun.process.background import Background
from jaxrun.store.records import Event

DRAWING, DRAWN_AHEAD = 4, 2
"""Threads that draw new trials, and new trials that are drawn before they have a slot."""


@dataclass
class SlotExchange:
    """The trials in the slots.

    Attributes:
        executor: Has the slots.
        trials: All trials of a base.
        progress: Of the same trials.
        snapshots: Parked states and best adapters.
        clock: Measures the exchange.
        capacity_rows: That a step may hold on a device.
        new_trial: Makes the snapshot of a trial that has not begun.
        begin_adopted: Lets trials begin that waited for the best of another task; returns the events that say so.
        best_only: Whether the best trial of a task alone keeps its adapter once it has ended.
        left: The trial that left a slot last, where that slot is still free.
        searches: By task, those that propose trials for slots that nobody waits for.
        hosts: The processes of the run.
        places: That the executor has for parked trials.
        events: Proposals, starts, parkings and resumptions, until the loop takes them out of the list.
        members: The trials of each task.
    """

    executor: Executor
    trials: list[Trial]
    progress: Sequence[TrialProgress]
    snapshots: Snapshots
    clock: RunTimes
    capacity_rows: int
    new_trial: Callable[[Trial], Snapshot]
    begin_adopted: Callable[[], list[Event]] = list
    best_only: bool = False
    left: Load | None = None
    searches: Mapping[str, TaskSearch] = field(default_factory=dict)
    hosts: Hosts = ALONE
    places: int = 0
    events: list[Event] = field(default_factory=list)
    members: dict[str, list[int]] = field(default_factory=dict, init=False)
    _kept: set[int] = field(default_factory=set, init=False)
    _parked: dict[int, int] = field(default_factory=dict, init=False)
    _parked_kept: set[int] = field(default_factory=set, init=False)
    _drawn: dict[int, Future[Snapshot]] = field(default_factory=dict, init=False)
    _pool: Background = field(default_factory=lambda: Background(DRAWING, "draw"), init=False)

    def __post_init__(self) -> None:
        """Sorts the trials by their tasks."""
        for i, trial in enumerate(self.trials):
            self.members.setdefault(trial.task, []).append(i)

    def fill(self) -> None:
        """Gives free slots to waiting trials."""
        self.events += self.begin_adopted()
        self._make_way()
        sharding = self.executor.sharding
        free: list[list[int]] = [[] for _ in range(sharding.groups)]
        running: list[list[Load]] = [[] for _ in range(sharding.groups)]
        taken = {p.slot for p in self.progress if p.slot is not None}
        for slot in range(sharding.slots):
            if slot not in taken:
                free[sharding.group(slot)].append(slot)
        idle = sum(map(len, free)) - sum(progress.phase == "waiting" for progress in self.progress)
        self.events += fill_planned(idle, self.trials, self.progress, self.searches, self.hosts)
        waiting = [self.load(t) for t, p in zip(self.trials, self.progress, strict=True) if p.phase == "waiting"]
        if not any(free) or not waiting:
            return
        for trial, progress in zip(self.trials, self.progress, strict=True):
            if progress.slot is not None and progress.phase == "running":
                running[sharding.group(progress.slot)].append(self.load(trial))
        offset = self.trials[0].index
        counts = [len(slots) for slots in free]
        with self.clock.measure("exchange_s"):
            tokens = self.capacity_rows * self.executor.plan.rows.length
            admitted = admit(waiting, running, counts, tokens, self.left)
            self._draw([load.trial - offset for load, _ in admitted])
            for load, group in admitted:
                self._enter(load.trial - offset, free[group].pop(0))
        later = [i for i, progress in enumerate(self.progress) if progress.phase == "waiting"]
        self._draw(later, at_most=DRAWN_AHEAD)
        self.left = None

    def load(self, trial: Trial) -> Load:
        """Returns the load of a trial on a step of a device."""
        return trial.load.on_device(self.executor.sharding.replicas, self.executor.plan.rows.tile)

    def running(self) -> list[int]:
        """Returns the trials at work."""
        return [i for i, one in enumerate(self.progress) if one.phase == "running" and one.slot is not None]

    def slot_of(self, i: int) -> int:
        """Returns the slot of a trial that is in one."""
        slot = self.progress[i].slot
        assert slot is not None
        return slot

    def live(self) -> dict[str, Snapshot]:
        """Copies the state of every trial in a slot to the host, and the best adapters out of the slots."""
        for i in sorted(self._kept):
            self._take_best(i)
        return {
            trial.full_name: self.executor.take(*self._whose(i), gathers=trial.accumulates)
            for i, trial in enumerate(self.trials)
            if self.progress[i].slot is not None
        }

    def restore(self, left: int | None) -> None:
        """Puts every trial that was in a slot at the checkpoint back into the same one.

        Where this run has fewer slots than that one, trials that had a higher one wait for their turn.

        Args:
            left: Index of the trial that left a slot last, where that slot was still free.
        """
        self.left = next((self.load(trial) for trial in self.trials if trial.index == left), None)
        for i, (trial, progress) in enumerate(zip(self.trials, self.progress, strict=True)):
            name = trial.full_name
            if progress.slot is not None and progress.slot >= self.executor.sharding.slots:
                self._note("park", i)
                progress.slot = None
                progress.phase = "waiting" if progress.phase == "running" else progress.phase
            elif progress.slot is not None:
                self.executor.put(progress.slot, self.snapshots.get("state", name), trial.hyper())
                self.snapshots.drop("state", name)

    def take_out(self, better: list[int]) -> None:
        """Keeps the adapters that are results now, and clears the slots of trials that ended."""
        for average, window in ((False, None), (True, 0)):
            if slots := [self.slot_of(i) for i in better if self.progress[i].best_average == average]:
                self.executor.keep(slots, window)
        self._kept.update(better)
        # Of those that have ended: the result of one that goes on need not stay as good.
        ended = [[j for j in own if self.progress[j].phase == "done"] for own in self.members.values()]
        leaders = {min(own, key=lambda j: (self.progress[j].best_loss, j)) for own in ended if own}
        for i, progress in enumerate(self.progress):
            name = self.trials[i].full_name
            if progress.phase == "done":
                self.snapshots.drop("state", name)
                if self.best_only and i not in leaders:
                    self.snapshots.drop("best", name)
                    self._kept.discard(i)
                    self._parked_kept.discard(i)
                self._leave_place(i)
            if progress.slot is not None and progress.phase == "done":
                self._leave(i)

    def _enter(self, i: int, slot: int) -> None:
        trial, progress = self.trials[i], self.progress[i]
        name = trial.full_name
        resumed = self.snapshots.has("state", name)
        if (place := self._parked.pop(i, None)) is not None:
            self.executor.resume(place, slot, trial.config.lora_rank, trial.hyper())
            if i in self._parked_kept:
                self._parked_kept.discard(i)
                self._kept.add(i)
                self.snapshots.drop("best", name)
        else:
            snapshot = self.snapshots.get("state", name) if resumed else self._drawn.pop(i).result()
            self.executor.put(slot, snapshot, trial.hyper())
        self.snapshots.drop("state", name)
        progress.slot, progress.phase = slot, "running"
        self._note("resume" if resumed else "start", i)

    def _draw(self, these: Sequence[int], at_most: int | None = None) -> None:
        """Draws new trials in threads; at most so many that are not in a slot yet."""
        for i in these:
            new = i not in self._drawn and not self.snapshots.has("state", self.trials[i].full_name)
            if new and (at_most is None or len(self._drawn) < at_most):
                self._drawn[i] = self._pool.submit(partial(self.new_trial, self.trials[i]))

    def _make_way(self) -> None:
        """Parks trials that wait at a rung, the worst first, while others wait for slots; else they stay there."""
        resting = [i for i, one in enumerate(self.progress) if one.slot is not None and one.phase == "rung"]
        proposing = any(proposable(self.members[task], self.trials, self.progress) for task in self.searches)
        if not proposing:
            taken = sum(one.slot is not None for one in self.progress)
            waiting = sum(one.phase == "waiting" for one in self.progress)
            resting.sort(key=lambda i: (-self.progress[i].best_loss, i))
            resting = resting[: max(0, waiting - (self.executor.sharding.slots - taken))]
        if resting:
            with self.clock.measure("exchange_s"):
                for i in resting:
                    self._park(i)

    def _park(self, i: int) -> None:
        """Takes a trial out of its slot: to a place on the device, or where all are taken to the host."""
        trial, (slot, rank, keys) = self.trials[i], self._whose(i)
        name = trial.full_name
        if free := set(range(self.places)) - set(self._parked.values()):
            place = self._parked[i] = min(free)
            self.executor.park(slot, place)
            parking = self.executor.parking
            take = partial(parking.take, place, rank, keys, gathers=trial.accumulates)
            state: Any = OnDevice(take)
            if i in self._kept:
                self._kept.discard(i)
                self._parked_kept.add(i)
                self.snapshots.put("best", name, OnDevice(partial(parking.kept, place, rank, keys)))
        else:
            state = self.executor.take(slot, rank, keys, gathers=trial.accumulates)
        self.snapshots.put("state", name, state)
        self._note("park", i)
        self._leave(i)

    def _leave_place(self, i: int) -> None:
        """Frees the place of a trial that ended in it; its best adapter goes to the host."""
        if self._parked.pop(i, None) is not None and i in self._parked_kept:
            self._parked_kept.discard(i)
            name = self.trials[i].full_name
            self.snapshots.put("best", name, on_host(self.snapshots.get("best", name)))

    def _leave(self, i: int) -> None:
        """Copies a trial's best adapter out of its slot, and clears it."""
        if i in self._kept:
            self._take_best(i)
        self.left = self.load(self.trials[i])
        self.executor.clear(self.slot_of(i))
        self.progress[i].slot = None

    def _take_best(self, i: int) -> None:
        """Copies a trial's best adapter out of its slot to the snapshots."""
        self.snapshots.put("best", self.trials[i].full_name, self.executor.kept(*self._whose(i)))
        self._kept.discard(i)

    def _whose(self, i: int) -> tuple[int, int, tuple[str, ...]]:
        """Returns a trial's slot, rank and projections."""
        trial = self.trials[i]
        return self.slot_of(i), trial.config.lora_rank, trial.keys

    def _note(self, kind: str, i: int) -> None:
        trial, progress = self.trials[i], self.progress[i]
        samples = trial.stream.samples_after(progress.step)
        payload = {"slot": progress.slot, "step": progress.step, "samples": samples}
        self.events.append(Event(kind, trial.task, trial.name, payload))
