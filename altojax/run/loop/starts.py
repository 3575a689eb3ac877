"""What trials begin with: a random adapter, one of a folder, or the best of a task that has ended."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from altojax.config.search.space import TrialConfig
from altojax.device.slots import Snapshot, fresh
from altojax.early_exit.metric import leader_of
from altojax.run.decisions import end
from altojax.run.prepare import PreparedBase
from altojax.run.tasks.search import TaskSearch
from altojax.run.trial import SHAPE, Trial, TrialProgress, TrialStart
from jaxrun.store.records import Event


def best_of(base: PreparedBase, progress: Sequence[TrialProgress]) -> dict[str, Trial | None]:
    """Returns the best trial of every task of a base, None where no validation loss was finite.

    Args:
        base: The base.
        progress: Of all trials of the run, in their order.
    """
    best: dict[str, Trial | None] = {}
    for task in base.tasks:
        finite = [one for one in base.trials if one.task == task and math.isfinite(progress[one.index].best_loss)]
        scores = {one.index: progress[one.index].best_score for one in finite}
        leader = leader_of(scores) if scores else None
        best[task] = next((one for one in finite if one.index == leader), None)
    return best


def adopt_winners(bases: Sequence[PreparedBase], progress: Sequence[TrialProgress]) -> None:
    """Gives trials that start from the best of a task its shape, once all trials of that task have ended.

    Args:
        bases: Of the run; trials and searches are replaced.
        progress: Of all trials, in their order.
    """
    for task, other in _waiting(bases, progress).items():
        winner = next(best_of(base, progress)[other] for base in bases if other in base.tasks)
        if winner is None:
            continue
        for base in bases:
            base.trials[:] = [_adopting(one, winner) if one.task == task else one for one in base.trials]
            if task in base.searches:
                base.searches[task] = _search_adopting(base.searches[task], winner)


def begin_adopted(bases: Sequence[PreparedBase], number: int, progress: Sequence[TrialProgress]) -> list[Event]:
    """Lets trials of a base begin whose task waited for another, and ends them where that has no adapter.

    Args:
        bases: Of the run.
        number: Which of them.
        progress: Of all trials of the run, in their order.
    """
    adopt_winners(bases, progress)
    events, without, base = list[Event](), _waiting(bases, progress), bases[number]
    for trial in base.trials:
        state, start = progress[trial.index], trial.start
        if state.phase != "planned" or start is None or start.task is None:
            continue
        if trial.task in without:
            why = f"no trial of {start.task} reached a finite validation loss"
            events.append(end(trial, state, "stopped", "no adapter", why))
        elif start.known and not trial.proposed:
            if all(event.task != trial.task for event in events):
                shape = {name: trial.settings[name] for name in SHAPE}
                events.append(Event("adopt", trial.task, None, {"from": str(start), **shape}))
            state.phase = "waiting"
    return events


def new_trial(base: PreparedBase, best: Callable[[str], Mapping[str, Mapping[str, Any]]], trial: Trial) -> Snapshot:
    """Returns a trial that has not begun.

    Args:
        base: Its base.
        best: Returns the best adapter of another trial, by ``task/name``, on the host.
        trial: The trial.
    """
    if trial.start is None:
        return fresh(base.sites_of(trial), trial.modules, trial.config.lora_rank, seed=trial.seed)
    return {"adapters": start_arrays(trial.start, best), "steps": np.zeros((), np.int32)}


def start_arrays(
    start: TrialStart, best: Callable[[str], Mapping[str, Mapping[str, Any]]]
) -> Mapping[str, Mapping[str, Any]]:
    """Returns the arrays of an adapter that trials start from, which is known; arguments as of `new_trial`."""
    if start.adapter is not None:
        return {key: {"a": a, "b": b} for key, (a, b) in start.adapter.items()}
    return best(f"{start.task}/{start.trial}")


def _waiting(bases: Sequence[PreparedBase], progress: Sequence[TrialProgress]) -> dict[str, str]:
    """Returns the tasks whose trials have adopted no adapter though the task has ended whose best it is, with that."""
    trials = [one for base in bases for one in base.trials]
    wanted = {one.task: one.start.task for one in trials if one.start is not None and not one.start.known}
    going_on = {one.task for one in trials if progress[one.index].phase != "done"}
    return {task: other for task, other in wanted.items() if other is not None and other not in going_on}


def _adopting(trial: Trial, winner: Trial) -> Trial:
    assert trial.start is not None
    shape = {name: getattr(winner.config, name) for name in SHAPE}
    start = replace(trial.start, trial=winner.name)
    return replace(trial, config=trial.config.model_copy(update=shape), modules=winner.modules, start=start)


def _search_adopting(search: TaskSearch, winner: Trial) -> TaskSearch:
    def make(index: int, name: str, one: TrialConfig) -> Trial:
        return _adopting(search.make(index, name, one), winner)

    return replace(search, make=make, largest=_adopting(search.largest, winner))
