"""Samples that a task is expected still to train on: its trials' schedules, less what early exit saves.

Of the rules only the one that compares trials is counted, by how many it says that it keeps at each rung; on the
curves of docs/measured/log.md that is 5 to 25 % too little, since a trial that noise may have held back is kept beyond
the count. It is corrected as trials end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altojax.early_exit.milestones import MilestoneSchedule, rung_steps
from altojax.early_exit.rules import Rules


@dataclass(frozen=True)
class TrialStanding:
    """The progress of a trial.

    Attributes:
        total: Samples of its schedule.
        schedule: When it may be compared with its peers.
        done: Samples that it has trained on.
        ended: Whether it trains no more.
    """

    total: int
    schedule: MilestoneSchedule
    done: int = 0
    ended: bool = False


def standings(
    trials: Sequence[Mapping[str, Any]], progress: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[TrialStanding]]:
    """Returns where the trials of each task stand.

    Args:
        trials: What a run's journal says of its trials.
        progress: What a checkpoint says of each (``task/trial``); those that it does not know have not begun.
    """
    found: dict[str, list[TrialStanding]] = {}
    for trial in trials:
        config, total = trial["config"], trial["total_samples"]
        per_step = config["batch_size"] * config["gradient_accumulation_steps"]
        known = progress.get(f"{trial['task']}/{trial['trial']}", {"step": 0, "phase": "waiting"})
        done, ended = min(known["step"] * per_step, total), known["phase"] == "done"
        found.setdefault(trial["task"], []).append(
            TrialStanding(total, MilestoneSchedule(**trial["schedule"]), done, ended)
        )
    return found


def expected_samples(tasks: Mapping[str, Sequence[TrialStanding]], rules: Rules) -> float:
    """Returns the samples that the trials of all tasks are expected to train on from where they stand."""
    return sum(_of_task([one for one in trials if not one.ended], rules, trials) for trials in tasks.values())


def _of_task(living: Sequence[TrialStanding], rules: Rules, trials: Sequence[TrialStanding]) -> float:
    if not living:
        return 0.0
    shares = [min(one.done / one.total, 1.0) for one in living]
    # A trial waits at its rung for its peers, so what any has gone beyond is settled for all.
    ahead = max(shares)
    schedules = [one.schedule for one in trials]
    longest = max(range(len(trials)), key=lambda number: (not trials[number].ended, schedules[number].total_steps))
    rungs = [step / schedules[longest].total_steps for step in rung_steps(rules, schedules)[longest]]
    survivors = [(0.0, 1.0)]
    count = len(living)
    for index, at in enumerate(rungs):
        if at >= ahead:
            count = rules.keeps(index, count)
            survivors.append((at, count / len(living)))
    return sum(one.total * _area(survivors, share) for one, share in zip(living, shares, strict=True))


def _area(survivors: Sequence[tuple[float, float]], begin: float) -> float:
    """Integrates the share of trials that live over the rest of the schedule."""
    ends = [*(at for at, _ in survivors[1:]), 1.0]
    return sum(share * max(end - max(at, begin), 0.0) for (at, share), end in zip(survivors, ends, strict=True))
