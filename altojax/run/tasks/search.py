"""A search that learns, as a run knows it: which trial to begin in a slot that falls free."""

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from altojax.config.search.configurations import axes_of, first_of, seed_of
from altojax.config.search.prior import pick
from altojax.config.search.proposer import NEW, Axes, Tried, good_ones, proposals, tpe
from altojax.config.search.space import NAMES, WHOLE, Draw, TrialConfig
from altojax.config.tune_config import TaskConfig, TuneConfig, objective_of, rules_of
from altojax.early_exit.curve import Curve
from altojax.early_exit.metric import comparable_loss
from altojax.early_exit.milestones import MilestoneSchedule, evaluation_steps, rung_steps
from altojax.early_exit.rules import Rules
from altojax.early_exit.standings import standings
from altojax.run.trial import Trial, TrialProgress
from jaxlm.devices.hosts import ALONE, Hosts
from jaxrun.store.records import Event

_SCHEDULING = ("batch_size", "gradient_accumulation_steps", "num_train_epochs", "train_samples", "warmup_ratio")
_GROWING = (*_SCHEDULING, "lora_rank", "lora_dropout")
_MOST_SCHEDULES = 1_000


@dataclass(frozen=True)
class TaskSearch:
    """Proposes trials of a task.

    Attributes:
        axes: The search space.
        rules: The early-exit rules.
        make: Makes a trial of an index, a name and a configuration.
        seed: Makes the seed of a proposal of its number.
        schedules: Of all that may be proposed: at which share of it a trial is compared depends on nothing else.
        largest: A trial that needs as much memory as any that may be proposed.
        drawn: As many configurations as the task has trials, no two alike: tried where no proposal is new.
        parameters: Of the base.
    """

    axes: Axes
    rules: Rules
    make: Callable[[int, str, TrialConfig], Trial]
    seed: Callable[[int], int]
    schedules: Sequence[MilestoneSchedule]
    largest: Trial
    drawn: Sequence[Mapping[str, Any]]
    parameters: float

    @classmethod
    def of(
        cls,
        config: TuneConfig,
        task: TaskConfig,
        make: Callable[[int, str, TrialConfig], Trial],
        drawn: Sequence[TrialConfig],
        parameters: float,
    ) -> "TaskSearch":
        """Returns the search of a task.

        Args:
            config: The run.
            task: The task.
            make: Makes a trial of an index, a name and a configuration.
            drawn: The task's configurations before any is proposed.
            parameters: Of the base.
        """
        axes = axes_of(config, task)
        ends = {name: _ends(name, choices) for name, choices in axes.items()}
        most = {name: max(values) if name in _GROWING else values[0] for name, values in ends.items()}
        scheduling = {name: ends[name] for name in _SCHEDULING if name in ends}
        if len(list(itertools.islice(itertools.product(*scheduling.values()), _MOST_SCHEDULES + 1))) > _MOST_SCHEDULES:
            scheduling = {name: [min(values), max(values)] for name, values in scheduling.items()}
        combined = (dict(zip(scheduling, one, strict=True)) for one in itertools.product(*scheduling.values()))
        named = {name: ends[name] for name in NAMES if name in ends}
        targets = [
            make(0, "", TrialConfig(**{**most, **dict(zip(named, one, strict=True))}))
            for one in itertools.product(*named.values())
        ]
        modules: dict[str, Any] = {}
        for trial in targets:
            modules |= {key: tuple(sorted({*modules.get(key, ()), *layers})) for key, layers in trial.modules.items()}
        largest = make(0, "", TrialConfig(**most))
        return cls(
            axes,
            rules_of(config, objective_of(config, task)),
            make,
            lambda number: int(seed_of(config, task, number).generate_state(1)[0]),
            [make(0, "", TrialConfig(**{**most, **one})).schedule for one in combined],
            replace(largest, modules=modules or largest.modules),
            [one.model_dump() for one in drawn],
            parameters,
        )

    def begun(self, trials: Sequence[Trial]) -> list[Trial]:
        """Returns a task's trials as they are before any is proposed: a third, and those that stand for the others."""
        first = first_of(len(trials))
        return [replace(self._scheduled(trial), proposed=i >= first) for i, trial in enumerate(trials)]

    def trial(self, place: Trial, settings: Mapping[str, Any], around: Sequence[str]) -> Trial:
        """Returns a proposed trial.

        Args:
            place: What stands for it.
            settings: Its configuration as plain data.
            around: Names of the trials around which it was proposed.
        """
        made = self._scheduled(self.make(place.index, place.name, TrialConfig.model_validate(settings)))
        return replace(made, proposed=True, around=tuple(around))

    def propose(self, place: Trial, begun: Sequence[tuple[Trial, TrialProgress]]) -> Trial:
        """Decides a trial: the same for the same trials that have come as far.

        Args:
            place: What stands for it.
            begun: The task's trials that are decided, and where they are.
        """
        curves = {trial.name: self._judged(one.curve()) for trial, one in begun if one.fraction}
        stand = standings(curves)
        tried = {
            trial.name: Tried({name: getattr(trial.config, name) for name in self.axes}, stand.get(trial.name))
            for trial, _ in begun
        }
        taken = {trial.identity() for trial, _ in begun}
        seed = self.seed(place.index)
        new: dict[Hashable, Mapping[str, Any]] = {}
        for values in proposals(self.axes, list(tried.values()), tpe(seed)):
            said = self.trial(place, values, ()).identity()
            if said not in taken:
                new.setdefault(said, values)
            if len(new) == NEW:
                break
        if new:
            settings = pick(list(new.values()), self.parameters, np.random.default_rng(seed))
            return self.trial(place, settings, good_ones(tried))
        drawn = (self.trial(place, settings, ()) for settings in self.drawn)
        return next(one for one in drawn if one.identity() not in taken)

    def _judged(self, curve: Curve) -> Curve:
        """Returns a trial's curve as it is compared with others."""
        if self.rules.comparison:
            return self.rules.comparison.judged(curve)
        comparable = comparable_loss("preference") if self.largest.objective == "dpo" else None
        return curve if comparable is None else curve.by(comparable)

    def _scheduled(self, trial: Trial) -> Trial:
        return with_milestones(trial, rung_steps(self.rules, [trial.schedule, *self.schedules])[0], self.rules)


def with_milestones(trial: Trial, rungs: tuple[int, ...], rules: Rules) -> Trial:
    """Returns a trial with its rungs and evaluations."""
    steps = evaluation_steps(trial.stream.total_steps, trial.every_steps, rungs, rules.evaluations)
    return replace(trial, eval_steps=steps, rungs=rungs)


def has_reported(first: Sequence[tuple[Trial, TrialProgress]]) -> bool:
    """Whether those that begin a search have all ended, or been evaluated and passed their first rung."""
    return all(one.phase == "done" or (one.fraction and (one.rung or not trial.rungs)) for trial, one in first)


def fill_planned(
    free: int,
    trials: list[Trial],
    progress: Sequence[TrialProgress],
    searches: Mapping[str, TaskSearch],
    hosts: Hosts = ALONE,
) -> list[Event]:
    """Decides trials for slots that nobody waits for, and returns the events that say so.

    Args:
        free: Slots.
        trials: Of a base; those that are decided take their places.
        progress: Of the same trials.
        searches: By task.
        hosts: The processes of the run; all of them must call it, and the leader decides.
    """
    events: list[Event] = []
    for task, search in searches.items():
        own = [i for i, trial in enumerate(trials) if trial.task == task]
        while free > 0 and (planned := proposable(own, trials, progress)):
            begun = [(trials[i], progress[i]) for i in own if progress[i].phase != "planned"]
            place = trials[planned[0]]
            found = search.propose(place, begun) if hosts.leads else None
            said = hosts.decide(found and _plain(found))
            trials[planned[0]] = search.trial(place, **said)
            progress[planned[0]].phase = "waiting"
            events.append(Event("propose", task, place.name, said))
            free -= 1
    return events


def proposable(own: Sequence[int], trials: Sequence[Trial], progress: Sequence[TrialProgress]) -> list[int]:
    """Returns the trials of a task that may be decided now."""
    planned = [i for i in own if progress[i].phase == "planned"]
    first = [(trials[i], progress[i]) for i in own if not trials[i].proposed]
    return planned if planned and has_reported(first) else []


def proposed(trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """Returns the trials that were proposed as plain data, for a checkpoint."""
    return {one.full_name: _plain(one) for one in trials if one.around is not None}


def put_back(trials: list[Trial], searches: Mapping[str, TaskSearch], saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts the trials of `proposed` in their places."""
    for i, place in enumerate(trials):
        if place.full_name in saved:
            trials[i] = searches[place.task].trial(place, **saved[place.full_name])


def _plain(trial: Trial) -> dict[str, Any]:
    return {"settings": trial.config.model_dump(mode="json"), "around": list(trial.around or ())}


def _ends(name: str, choices: Sequence[Any] | Draw) -> list[Any]:
    if not isinstance(choices, Draw):
        return list(choices)
    return [round(end) if name in WHOLE else end for end in (choices.min, choices.max)]
