"""Runs of one task that decide as real ones do, on losses that a test makes up, and the journals that they leave."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from altojax.config.search.space import TrialConfig
from altojax.config.tune_config import TuneConfig
from altojax.device.batch import Stream
from altojax.early_exit.milestones import evaluation_steps, rung_steps
from altojax.early_exit.replay import RecordedTrial, end_of_trials, first_alarms
from altojax.early_exit.rules import Rules
from altojax.run.decisions import is_compared, judge, record_evaluation, settle_rungs
from altojax.run.trial import Trial, TrialProgress
from jaxrun.config.config import check_config, dump_config, what_was_set
from jaxrun.store.journal import Journal
from jaxrun.store.records import Event, Point


def made_up(rules: Rules, random: np.random.Generator, count: int) -> list[Trial]:
    """Trials of one task that differ in length, evaluations and warm-up."""
    trials = []
    for index in range(count):
        batch, samples = int(random.choice([1, 2, 5, 8])), int(random.integers(20, 300))
        one = TrialConfig(batch_size=batch, warmup_ratio=float(random.choice([0.0, 0.03, 0.2])))
        every = float(random.choice([0.05, 0.1, 0.3])) * samples / batch
        stream = Stream([], 0, samples, batch, 1)
        trials.append(Trial(index, "task", f"trial-{index}", one, {}, stream, 0, 32, every_steps=every))
    return with_rungs(rules, trials)


def with_rungs(rules: Rules, trials: Sequence[Trial]) -> list[Trial]:
    """The trials as a run prepares them: with evaluations and rungs."""
    rungs = rung_steps(rules, [one.schedule for one in trials])
    return [
        replace(
            one,
            eval_steps=evaluation_steps(one.stream.total_steps, one.every_steps, steps, rules.evaluations),
            rungs=steps,
        )
        for one, steps in zip(trials, rungs, strict=True)
    ]


def play(
    rules: Rules, trials: Sequence[Trial], losses: Mapping[str, np.ndarray]
) -> tuple[list[TrialProgress], list[Event]]:
    """Takes all decisions of a run.

    Args:
        rules: Its early exit.
        trials: Its trials.
        losses: Training and validation loss, and that of an average, at each of a trial's evaluations, [2 or 3, n], by
            its name; the average is evaluated at rungs and at the end only.
    """
    progress, events = [TrialProgress("running") for _ in trials], []
    while any(one.phase in ("running", "waiting") for one in progress):
        for trial, one in zip(trials, progress, strict=True):
            if one.phase in ("running", "waiting"):
                at = sum(step <= one.step for step in trial.eval_steps)
                one.step, one.loss_sum, one.loss_steps = trial.eval_steps[at], float(losses[trial.name][0][at]), 1
                means = [float(loss[at]) for loss in losses[trial.name][2:] if is_compared(trial, one)]
                record_evaluation(trial, one, float(losses[trial.name][1][at]), means)
                events += judge(trial, one, rules)
        events += settle_rungs(trials, progress, rules)
    return progress, events


def write(
    folder: Path, rules: Rules, trials: Sequence[Trial], progress: Sequence[TrialProgress], events: Sequence[Event]
) -> Path:
    """Writes the journal that such a run leaves, with a checkpoint at its end."""
    model = {"model_name_or_path": "base"}
    given = {"output_dir": "x", "model": model, "tasks": [{"name": "task", "data": {"train": "x.jsonl"}}]}
    config = check_config(TuneConfig, {**given, "early_exit": what_was_set(rules)}, "x")
    points = []
    for trial, one in zip(trials, progress, strict=True):
        for i, (share, train, val) in enumerate(zip(one.fraction, one.train_loss, one.val_loss, strict=True)):
            at = ("task", trial.name, round(share * trial.stream.total_steps), 0, 0)
            points += [Point(*at, "train", train), Point(*at, "validation", val)]
            points += [Point(*at, "average", loss) for loss in one.average_losses[i]]
    stands = {one.full_name: state.to_dict() for one, state in zip(trials, progress, strict=True)}
    with Journal.open(folder, config_text=dump_config(config), identity="d") as journal:
        journal.set("trials", [_facts(trial) for trial in trials])
        journal.append(0, [event for event in events if event.kind == "end"], points)
        journal.commit_checkpoint(1, {"progress": stands, "clock": {"before_s": 1.0}, "finished": False}, {})
    return folder


def ends(rules: Rules, group: Mapping[str, RecordedTrial]) -> dict[str, int]:
    """The steps at which a replay ends the trials of a group."""
    alarms = first_alarms(rules, {"task": group})["task"]
    return {name: int(group[name].steps[at]) for name, at in end_of_trials(rules, group, alarms).items()}


def _facts(trial: Trial) -> dict:
    sizes = {"total_steps": trial.stream.total_steps, "total_samples": trial.stream.total_samples}
    return {"task": "task", "trial": trial.name, "config": trial.settings, **sizes, "schedule": asdict(trial.schedule)}
