"""Forecast of the batches of coming steps: every trial's rows are known ahead."""

from collections.abc import Sequence
from dataclasses import dataclass

from altojax.device.batch import Part
from altojax.device.batch_shapes import Shape
from altojax.device.executor import Executor
from altojax.packing.slot_admission import Load, admit
from altojax.run.trial import Trial, TrialProgress

SAMPLES = 64
"""Steps that are looked at of all those to come, evenly spaced."""


@dataclass(frozen=True, eq=False)
class Runner:
    """A trial in its slot."""

    trial: Trial
    progress: TrialProgress
    slot: int

    @property
    def left(self) -> int:
        """The training steps until the end of its schedule."""
        stream, progress = self.trial.stream, self.progress
        return max(0, (stream.total_steps - progress.step) * stream.accumulation - progress.micro)

    def part(self, ahead: int) -> Part:
        """Returns its part of the training step `ahead` of the next one: the rows alone."""
        stream = self.trial.stream
        whole, micro = divmod(self.progress.micro + ahead, stream.accumulation)
        rows = stream.micro_batch(stream.effective_batch(self.progress.step + whole), micro)
        return Part(self.slot, rows, [0] * len(rows), 1.0)


def forecast(runners: Sequence[Runner], horizon: int, *, waiting: bool) -> tuple[list[list[Part]], int]:
    """Returns the parts of training steps to come, evenly spaced, and how many steps each of them stands for.

    Each trial is foreseen to the end of its schedule. One that ends before leaves steps that need less still; until a
    rung alone the steps to come would seem too few to repay a compilation.

    Args:
        runners: The trials at work.
        horizon: Steps to look ahead, at most.
        waiting: Whether others wait for their slots: one that ends is followed by one much like it, so all are
            foreseen until the first of them has trained all its samples.
    """
    left = {runner: runner.left for runner in runners if runner.left}
    horizon = min(horizon, (min if waiting else max)(left.values(), default=0))
    stride = max(1, horizon // SAMPLES)
    ticks = range(0, horizon, stride)
    return [[runner.part(tick) for runner, end in left.items() if tick < end] for tick in ticks], stride


def foresee_first(executor: Executor, trials: Sequence[Trial], loads: Sequence[Load], largest: Shape) -> None:
    """Begins to compile the shape that the first steps are worth, if it is another than the largest.

    Args:
        executor: Nothing has been trained in it.
        trials: All trials of the base.
        loads: Their loads, for one device, those of trials that are proposed later as the largest that they may be.
        largest: The largest shape of a step.
    """
    sharding, programs = executor.sharding, executor.programs
    if not programs.looks("train"):
        return
    free = [
        list(range(group * sharding.own_slots, (group + 1) * sharding.own_slots)) for group in range(sharding.groups)
    ]
    begin = [load for load, trial in zip(loads, trials, strict=True) if not trial.proposed]
    admitted = admit(begin, [[] for _ in free], [len(slots) for slots in free], largest.tokens)
    first = trials[0].index
    taken = {load.trial: free[group].pop(0) for load, group in admitted}
    runners = [Runner(trials[trial - first], TrialProgress(), slot) for trial, slot in taken.items()]
    ahead, times = forecast(runners, programs.reach("train"), waiting=len(runners) < len(trials))
    programs.look("train", ahead, times, waits=False)
    programs.arrive("train")
