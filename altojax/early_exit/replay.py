"""Replays recorded learning curves through early-exit rules: what they would have saved, and what lost.

Rungs are where a run of these trials would have them (`altojax.early_exit.milestones`). A full grid runs every trial to
the last evaluation recorded; that is what savings are measured against. A trial's result is its lowest validation loss
up to where it was ended, since the best checkpoint is kept; the group's result is the lowest among its trials. Rules
that rank by averaged adapters are judged by the results that their runs have (`result_losses`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from altojax.early_exit.curve import AVERAGE, Curve
from altojax.early_exit.milestones import MilestoneSchedule, recorded_schedule, rung_steps
from altojax.early_exit.rules import Rules
from jaxrun.process.errors import UserError


@dataclass(frozen=True)
class RecordedTrial:
    """One recorded trial.

    Attributes:
        steps: Optimizer steps at each evaluation, float64 [n], ascending.
        max_steps: Optimizer steps of its whole schedule.
        curve: Its losses.
        when: When it may be compared, where that is known; else it is read off its evaluations.
        broken: Whether it was ended because its updates were not finite, which its losses need not show.
    """

    steps: np.ndarray
    max_steps: int
    curve: Curve
    when: MilestoneSchedule | None = None
    broken: bool = False

    @property
    def schedule(self) -> MilestoneSchedule:
        """Steps at which it may be compared with its peers."""
        return recorded_schedule(self.max_steps, self.steps.tolist()) if self.when is None else self.when


@dataclass(frozen=True)
class ReplayedGroup:
    """The outcome of rules on one group.

    Attributes:
        run_steps: Steps run, over all trials.
        full_steps: Steps of the full grid.
        regret: How far the group's result is above the best of its full grid, divided by the size of that loss;
            inf where that loss is 0 and missed, nan where the grid has no finite validation loss.
        gain: How far the best of the full grid is below its lowest raw loss, divided likewise; None for rules whose
            trials have no averaged adapter.
    """

    run_steps: float
    full_steps: float
    regret: float
    gain: float | None = None


def replay(rules: Rules, groups: Mapping[str, Mapping[str, RecordedTrial]]) -> list[ReplayedGroup]:
    """Plays groups of trials, each of which competed with the others of its group, in the order given.

    The rules are those for such curves (`Rules.for_curves`).

    Raises:
        UserError: A rule needs what the curves have not, or have not where it compares them.
    """
    recorded = [set(trial.curve.more) for trials in groups.values() for trial in trials.values()]
    measured = set.intersection(*recorded) if recorded else set()
    rules = rules.for_curves(measured)
    for need, rule in rules.lacking(measured).items():
        raise UserError(f"early_exit.{rule} needs '{need}' of every trial, which these curves lack")
    alarms = first_alarms(rules, groups)
    outcomes = []
    for name, trials in groups.items():
        ends = end_of_trials(rules, trials, alarms[name])
        run = sum(float(trials[trial].steps[end]) for trial, end in ends.items())
        full = sum(float(trial.steps[-1]) for trial in trials.values())
        losses = result_losses(rules, trials)
        best = min(_lowest(of_trial) for of_trial in losses.values())
        found = min(_lowest(losses[trial][: end + 1]) for trial, end in ends.items())
        raw = min(_lowest(trial.curve.val_loss) for trial in trials.values())
        gain = abs(_regret(best, raw)) if _averaged(rules) else None
        outcomes.append(ReplayedGroup(run, full, _regret(found, best), gain))
    return outcomes


def result_losses(rules: Rules, trials: Mapping[str, RecordedTrial]) -> dict[str, np.ndarray]:
    """Returns what each trial of a group would have as its result if an evaluation were its only one, float64 [n].

    That is its validation loss. Where rules rank by averaged adapters a run carries these, and measures them at rungs
    and at the end: there it is the lower loss of the two, as `result: best` exports it.
    """
    losses = {name: trial.curve.val_loss for name, trial in trials.items()}
    if not _averaged(rules):
        return losses
    rungs = rung_steps(rules, [trial.schedule for trial in trials.values()])
    for (name, trial), steps in zip(trials.items(), rungs, strict=True):
        at = [_reached(trial, step) for step in (*steps, trial.max_steps)]
        losses[name] = losses[name].copy()
        losses[name][at] = np.fmin(losses[name][at], trial.curve.more[AVERAGE][at])
    return losses


def summary(outcomes: Sequence[ReplayedGroup]) -> dict[str, float]:
    """Sums up groups.

    Returns:
        Fractions: `saved`, the share of all steps of the full grids that was not run; `regret_mean`, `regret_p95` and
        `regret_max` over the groups; `best_kept`, the share of groups without any regret, which means that the best
        trial was not ended before its best evaluation. Groups whose regret is nan count for `saved` alone. Where trials
        have averaged adapters also `averages_gain`, the mean by which these make the best of a full grid better.
    """
    regrets = [outcome.regret for outcome in outcomes if not math.isnan(outcome.regret)] or [0.0]
    gains = [outcome.gain for outcome in outcomes if outcome.gain is not None and not math.isnan(outcome.gain)]
    full = sum(outcome.full_steps for outcome in outcomes)
    with np.errstate(invalid="ignore"):  # between two infinite regrets is nan, which stands for infinite
        late = float(np.percentile(regrets, 95))
    return {
        "saved": 1.0 - sum(outcome.run_steps for outcome in outcomes) / full if full else 0.0,
        "regret_mean": float(np.mean(regrets)),
        "regret_p95": math.inf if math.isnan(late) else late,
        "regret_max": max(regrets),
        "best_kept": regrets.count(0.0) / len(regrets),
        **({"averages_gain": float(np.mean(gains))} if gains else {}),
    }


def end_of_trials(rules: Rules, trials: Mapping[str, RecordedTrial], alarms: Mapping[str, int]) -> dict[str, int]:
    """Returns the index of the last evaluation that each trial of a group makes.

    A trial reaches a rung at its first evaluation there or later; one whose curve stops before waits there with what it
    has, or aside where it has no average yet; one whose schedule does has ended. An alarm raised at the evaluation that
    reaches a rung comes before the comparison.

    Args:
        rules: The rules.
        trials: The group's trials by name.
        alarms: The evaluation at which each trial's own curve ends it, its number of evaluations where nothing does.

    Raises:
        UserError: A trial is compared by what was not measured at that evaluation.
    """
    ends = {name: min(alarms[name], len(trial.steps) - 1) for name, trial in trials.items()}
    rungs = dict(zip(trials, rung_steps(rules, [trial.schedule for trial in trials.values()]), strict=True))
    living = dict(trials)
    for index in range(len(rules.rungs)):
        curves, at = {}, {}
        for name, trial in living.items():
            rung = rungs[name][index]
            reached = _reached(trial, rung)
            if rung < trial.max_steps and reached < alarms[name]:
                at[name], curve = reached, trial.curve.first(reached + 1)
                gap = _gap(rules, curve)
                if gap is None:
                    curves[name] = curve
                elif trial.steps[reached] >= rung:
                    where = f"{name} at step {trial.steps[reached]:g}"
                    raise UserError(f"early_exit compares by {gap}, which {where} lacks, expected it at every rung")
        for name in rules.at_rung(index, curves):
            ends[name] = at.pop(name)
        living = {name: trials[name] for name in at}
    return ends


def first_alarms(rules: Rules, groups: Mapping[str, Mapping[str, RecordedTrial]]) -> dict[str, dict[str, int]]:
    """Asks the rules that judge one trial about all trials at once, those of equal length together."""
    by_length: dict[int, list[tuple[str, str]]] = {}
    for group, trials in groups.items():
        for name, trial in trials.items():
            by_length.setdefault(len(trial.steps), []).append((group, name))
    first: dict[str, dict[str, int]] = {group: {} for group in groups}
    for members in by_length.values():
        judged = rules.first_alarms([groups[group][name].curve for group, name in members])
        for (group, name), index in zip(members, judged, strict=True):
            trial = groups[group][name]
            first[group][name] = min(index, len(trial.steps) - 1) if rules.ends_broken and trial.broken else index
    return first


def _reached(trial: RecordedTrial, rung: float) -> int:
    return min(int(np.searchsorted(trial.steps, rung)), len(trial.steps) - 1)


def _averaged(rules: Rules) -> bool:
    return rules.comparison is not None and AVERAGE in rules.comparison.needs


def _gap(rules: Rules, curve: Curve) -> str | None:
    """What trials are compared by and was not measured at the last evaluation of one whose loss is finite there."""
    needs = rules.comparison.needs if rules.comparison and np.isfinite(curve.val_loss[-1]) else ()
    return next((need for need in needs if np.isnan(curve.more[need][-1])), None)


def _regret(found: float, best: float) -> float:
    if math.isinf(best):
        return math.nan
    if found == best:
        return 0.0
    return (found - best) / abs(best) if best else math.inf


def _lowest(val_loss: np.ndarray) -> float:
    return float(np.min(val_loss, where=np.isfinite(val_loss), initial=np.inf))
