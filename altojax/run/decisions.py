"""Decisions on trials at evaluations and rungs: bookkeeping around rules and callbacks, no device and no clock."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from altojax.config.objectives import base_loss_of
from altojax.config.tune_config import Result
from altojax.early_exit.alarms.not_finite import BAD_UPDATES
from altojax.early_exit.callbacks import Evaluation, Observers
from altojax.early_exit.metric import Score, beats
from altojax.early_exit.rules import Rules
from altojax.run.trial import Trial, TrialProgress
from jaxlm.devices.hosts import Hosts
from jaxrun.store.records import Event
from jaxrun.store.run_log import RunLog

ENDED_BY_CALLBACK = "ended_by_callback"
"""Key of the journal's fact that says after which step, and why, a callback ended a trial, by its name."""
BAD_STEPS = 3
"""Updates in a row that may be skipped for a non-finite gradient before a trial is ended."""


def is_due(trial: Trial, progress: TrialProgress) -> bool:
    """Whether a trial's evaluation is due."""
    had = bool(progress.fraction) and progress.fraction[-1] == progress.step / trial.stream.total_steps
    return progress.micro == 0 and progress.step in trial.eval_steps and not had


def is_compared(trial: Trial, progress: TrialProgress) -> bool:
    """Whether an evaluation is that of a rung or the last one, at which running averages are measured too."""
    return progress.step in (*trial.rungs, trial.stream.total_steps)


def record_evaluation(
    trial: Trial,
    progress: TrialProgress,
    val_loss: float,
    averages: Sequence[float] = (),
    result: Result = "best",
    scores: Mapping[str, float] | None = None,
) -> bool:
    """Adds an evaluation to a trial's curve.

    Args:
        trial: The trial.
        progress: Where it stands.
        val_loss: Of its adapter.
        averages: Losses of its running averages, one a window; none where they were not measured.
        result: Which adapter is its result.
        scores: What was measured of the run's metric, of its adapter and of its first average, by names in curves.

    Returns:
        Whether its result is now an adapter of this evaluation: that or, if `progress.best_average`, the first average.
    """
    progress.fraction.append(progress.step / trial.stream.total_steps)
    progress.train_loss.append(progress.loss_sum / progress.loss_steps if progress.loss_steps else math.nan)
    progress.val_loss.append(val_loss)
    progress.average_losses.append(list(averages))
    progress.scores.append(dict(scores or {}))
    progress.loss_sum, progress.loss_steps = 0.0, 0
    losses = {False: val_loss, True: averages[0] if averages else math.nan}
    if result != "best":
        del losses[result == "last"]
    better = False
    for average, loss in losses.items():
        score = Score.among(progress.scores[-1], loss, average=average)
        if math.isfinite(loss) and (result != "best" or beats(score, progress.best_score)):
            better, progress.best_metric = True, score.measured
            progress.best_loss, progress.best_step, progress.best_average = loss, progress.step, average
    return better


def judge(trial: Trial, progress: TrialProgress, rules: Rules, wish: str | None = None) -> list[Event]:
    """Decides a trial's phase after an evaluation.

    Ends by a rule of its own, completes, ends because a callback says so, waits at a rung, or continues.

    Args:
        trial: The trial.
        progress: Where it stands.
        rules: End trials.
        wish: Why a callback ends it; None where none does.
    """
    if progress.bad_steps >= BAD_STEPS and rules.ends_broken:
        detail = f"{progress.bad_steps} {BAD_UPDATES}"
        return [end(trial, progress, "stopped", "not finite", detail)]
    verdict = rules.after_evaluation(progress.curve())
    finished = progress.step >= trial.stream.total_steps
    if verdict is not None and not finished:
        return [end(trial, progress, "stopped", verdict.reason, verdict.detail)]
    if finished:
        return [end(trial, progress, "completed", "schedule done", "")]
    if wish is not None:
        return [end(trial, progress, "stopped", "callback", wish)]
    if progress.rung < len(trial.rungs) and progress.step >= trial.rungs[progress.rung]:
        progress.phase = "rung"
    return []


def settle_rungs(trials: Sequence[Trial], progress: Sequence[TrialProgress], rules: Rules) -> list[Event]:
    """Compares the trials of a task once all that live have reached the same rung; those kept wait for a slot again.

    Trials that were added to a run are compared with all that were at that rung before them, as they were then. So is
    each that was proposed while others ran, once those that began the search have passed the rung.

    Args:
        trials: The trials of one task.
        progress: Of the same trials.
        rules: Decide who ends.
    """
    everyone = list(zip(trials, progress, strict=True))
    first = [(t, p) for t, p in everyone if not t.proposed]
    events = _settle(first, everyone, rules)
    passed = min((p.rung for _, p in first if p.phase != "done"), default=len(rules.rungs))
    for one in everyone:
        if one[0].proposed and one[1].rung < passed:
            events += _settle([one], everyone, rules, passed)
    return events


def _settle(
    group: Sequence[tuple[Trial, TrialProgress]],
    everyone: Sequence[tuple[Trial, TrialProgress]],
    rules: Rules,
    until: int | None = None,
) -> list[Event]:
    """Compares a group of trials, which wait for one another at rungs, with all that were there before them."""
    events: list[Event] = []
    while True:
        living = [(t, p) for t, p in group if p.phase != "done"]
        if not living:
            return events
        index = min(p.rung for _, p in living)
        here = [(t, p) for t, p in living if p.rung == index]
        if index >= len(here[0][0].rungs) or any(p.phase != "rung" for _, p in here):
            return events
        if until is not None and index >= until:
            return events
        before = [(t, p) for t, p in everyone if p.rung > index]
        curves = {t.name: p.curve(t.rungs[index] / t.stream.total_steps) for t, p in (*before, *here)}
        verdicts = rules.at_rung(index, curves)
        kept = []
        for trial, state in here:
            state.rung += 1
            verdict = verdicts.get(trial.name)
            if verdict is not None:
                events.append(end(trial, state, "stopped", verdict.reason, verdict.detail))
                continue
            kept.append(trial.name)
            at_next = state.rung < len(trial.rungs) and state.step >= trial.rungs[state.rung]
            state.phase = "rung" if at_next else "running" if state.slot is not None else "waiting"
        ended = sorted(trial.name for trial, _ in here if trial.name in verdicts)
        events.append(Event("rung", here[0][0].task, None, {"index": index, "kept": kept, "ended": ended}))


def end(trial: Trial, progress: TrialProgress, status: str, reason: str, detail: str) -> Event:
    """Ends a trial and returns the event that says so."""
    progress.phase, progress.status, progress.reason, progress.detail = "done", status, reason, detail
    payload = {
        "slot": progress.slot,
        "step": progress.step,
        "samples": trial.stream.samples_after(progress.step),
        "status": status,
        "reason": reason,
        "detail": detail,
        "slot_s": round(progress.slot_s, 3),
    }
    return Event("end", trial.task, trial.name, payload)


class Observed:
    """Shows evaluations to the caller's code, on the leading process.

    An end that a callback decides stands: the journal keeps it as a fact, which no return to a checkpoint takes away,
    and a resumed run ends the trial at the same step, whether or not it is given the callback again.
    """

    def __init__(self, observers: Observers, run_log: RunLog, hosts: Hosts) -> None:
        """Reads the ends that the journal has; all processes must call it."""
        self._observers, self._run_log, self._hosts = observers, run_log, hosts
        self._ends: dict[str, list[Any]] = run_log.noted(ENDED_BY_CALLBACK, {})
        self._base_loss: dict[str | None, dict[str, Any]] = {}
        self._asks = bool(hosts.decide(bool(observers or self._ends)))

    def __call__(self, trial: Trial, progress: TrialProgress) -> tuple[list[Event], str | None]:
        """Returns events to record of a trial that was evaluated, and why a callback ends it, or None.

        Raises:
            UserError: The caller's code returned what it may not.
        """
        if not self._asks:
            return [], None
        with self._hosts.together():
            said = self._ask(trial, progress) if self._hosts.leads else None
        metrics, wish = self._hosts.decide(said)
        payload = {"step": progress.step, "samples": trial.stream.samples_after(progress.step), "metrics": metrics}
        return [Event("metric", trial.task, trial.name, payload)] if metrics else [], wish

    def _ask(self, trial: Trial, progress: TrialProgress) -> tuple[dict[str, float], str | None]:
        if trial.task not in self._base_loss:
            self._base_loss = {one.task: one.payload for one in self._run_log.events("base_loss")}
        base_loss = base_loss_of(self._base_loss[trial.task], trial.settings)
        seen = self._observers.measured(
            Evaluation(
                task=trial.task,
                trial=trial.name,
                settings=trial.settings,
                step=progress.step,
                samples=trial.stream.samples_after(progress.step),
                fraction=progress.fraction[-1],
                train_loss=progress.train_loss[-1],
                val_loss=progress.val_loss[-1],
                best_loss=progress.best_loss,
                base_loss=math.nan if base_loss is None else base_loss,
            )
        )
        step, wish = self._ends.get(trial.full_name, (None, None))
        if step != progress.step:
            wish = self._observers.verdict(seen)
        if wish is not None and step != progress.step:
            self._ends[trial.full_name] = [progress.step, wish]
            self._run_log.note(ENDED_BY_CALLBACK, self._ends)
        return dict(seen.metrics), wish
