"""Evaluation steps and rungs of a trial: one answer for runs, replays and estimates."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from altojax.early_exit.rules import Rules

_NEAR = 1e-9


@dataclass(frozen=True)
class MilestoneSchedule:
    """The facts that decide when a trial may be compared.

    Attributes:
        total_steps: Its optimizer steps.
        twice: Share of them after which it has been evaluated twice, rungs aside; 1 or more where it never is.
        warmup: Share of them in which its learning rate warms up.
    """

    total_steps: int
    twice: float
    warmup: float = 0.0


def schedule(total_steps: int, every_steps: float, warmup: float) -> MilestoneSchedule:
    """Returns the schedule of a trial that is evaluated every so many optimizer steps, or after each if they are less.

    Args:
        total_steps: Its optimizer steps.
        every_steps: Between evaluations.
        warmup: Share of them in which its learning rate warms up.
    """
    return _with_second(total_steps, math.ceil(2 * max(every_steps, 1.0) - _NEAR), warmup)


def recorded_schedule(total_steps: int, evaluated: Sequence[float], warmup: float = 0.0) -> MilestoneSchedule:
    """Returns the schedule of a trial by the optimizer steps after which it was evaluated, as `schedule` would.

    Args:
        total_steps: Its optimizer steps.
        evaluated: Ascending; a step 0 among them is not counted.
        warmup: Share of them in which its learning rate warms up.
    """
    trained = [step for step in evaluated if step > 0]
    second = trained[1] if len(trained) > 1 else 2 * trained[0] if trained else total_steps
    return _with_second(total_steps, second, warmup)


def steps_between(eval_samples: float, total_samples: int, step_samples: int) -> float:
    """Returns the optimizer steps between evaluations.

    Args:
        eval_samples: Samples between them; below 1 a share of the schedule.
        total_samples: Of the schedule.
        step_samples: Of an optimizer step.
    """
    return (eval_samples * total_samples if eval_samples < 1 else eval_samples) / step_samples


def rung_steps(rules: Rules, schedules: Sequence[MilestoneSchedule]) -> list[tuple[int, ...]]:
    """Returns the optimizer steps after which each trial of a task is compared with its peers.

    A rung that is a share of the schedule is at the same share for all, one in steps at the same step. None comes
    before every trial has warmed up and, where the rules wait for it, has been evaluated twice; each rung has an
    evaluation of its own. Trials for which that is no earlier than their end hold up nobody: they are not compared,
    which a rung at their end says.

    Args:
        rules: Say where rungs should be.
        schedules: Of all trials of a task, whatever has become of them.

    Returns:
        For each trial a step for each rung, ascending; of few steps several rungs may fall on one.
    """
    waits = rules.evaluations > 1 and rules.waits_for_second
    ready = [max(one.warmup, one.twice if waits else rules.evaluations / one.total_steps) for one in schedules]
    steps = [_step(share, one) for share, one in zip(ready, schedules, strict=True)]
    compared = [step < one.total_steps for step, one in zip(steps, schedules, strict=True)]
    least_share = max(itertools.compress(ready, compared), default=1.0)
    least_step = max(itertools.compress(steps, compared), default=1)

    def at(rung: float, one: MilestoneSchedule) -> int:
        step = _step(max(rung, least_share), one) if rung < 1 else max(math.ceil(rung), least_step)
        return min(step, one.total_steps)

    return [
        tuple(at(rung, one) if takes_part else one.total_steps for rung in rules.rungs)
        for one, takes_part in zip(schedules, compared, strict=True)
    ]


def evaluation_steps(
    total_steps: int, every_steps: float, rungs: Sequence[int], evaluations: int = 2
) -> tuple[int, ...]:
    """Returns the optimizer steps after which a trial is evaluated: regularly, at its rungs and at its end.

    Where it would come to its first rung with fewer than two evaluations that it needs, there is one more halfway.

    Args:
        total_steps: Of its schedule.
        every_steps: Between evaluations; it is never evaluated twice after one step.
        rungs: Where it is compared, ascending.
        evaluations: How many the rules need of it when it is compared.
    """
    every = max(every_steps, 1.0)
    steps = {math.ceil(k * every - _NEAR) for k in range(1, math.floor(total_steps / every + _NEAR) + 1)} | set(rungs)
    if evaluations > 1 and rungs and min(steps) >= rungs[0]:
        steps.add(rungs[0] // 2)
    return tuple(sorted({step for step in steps if 0 < step < total_steps} | {total_steps}))


def _with_second(total_steps: int, second: float, warmup: float) -> MilestoneSchedule:
    """Returns a schedule by its second evaluation, of which the share is any that is put off to that whole step."""
    return MilestoneSchedule(total_steps, (second - 1 + 1e-6) / total_steps, warmup)


def _step(share: float, one: MilestoneSchedule) -> int:
    return max(1, math.ceil(share * one.total_steps - _NEAR))
