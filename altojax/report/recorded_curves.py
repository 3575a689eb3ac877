"""Reads the learning curves that a run of ``altojax tune`` has recorded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from altojax.config.tune_config import TuneConfig
from altojax.early_exit.alarms.not_finite import BAD_UPDATES
from altojax.early_exit.curve import Curve
from altojax.early_exit.milestones import MilestoneSchedule
from altojax.early_exit.replay import RecordedTrial
from altojax.early_exit.rules import Rules
from altojax.report.curve_files import read_curves
from altojax.report.run_record import RunRecord, TrialRecord, read_record
from jaxrun.config.config import check_config
from jaxrun.config.strict_yaml import parse_yaml
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal


@dataclass(frozen=True)
class RecordedRun:
    """The curves of a run.

    Attributes:
        groups: Its trials by name, by task; those without an evaluation are left out.
        rules: Its early exit.
        notes: Lines about what the curves lack.
    """

    groups: dict[str, dict[str, RecordedTrial]]
    rules: Rules
    notes: tuple[str, ...]


def read_run(run_dir: str | Path) -> RecordedRun:
    """Reads a run's folder, also while the run is live.

    Raises:
        UserError: There is no run of ``altojax tune``, or none of its trials has been evaluated yet.
    """
    with Journal.read(run_dir) as journal:
        if journal.get("trials") is None:
            raise UserError(f"{run_dir}: its journal has no trials, expected a run of altojax tune")
        config = check_config(TuneConfig, parse_yaml(journal.config_text, str(run_dir)), str(run_dir))
        record = read_record(journal)
        more = sorted({name for one in record.trials for name in one.more})
        groups: dict[str, dict[str, RecordedTrial]] = {}
        with journal.interpreted():
            for one in record.trials:
                if one.validation:
                    groups.setdefault(one.task, {})[one.trial] = _trial(one, more)
    if not groups:
        raise UserError(f"{run_dir}: no curves yet, expected a run of which a trial has been evaluated")
    rules = config.early_exit.for_curves(set(more))
    if all(one.select_by == "preference" for one in record.trials):
        rules = rules.selecting_by("preference")
    return RecordedRun(groups, rules, tuple(_notes(record)))


def read_groups(path: str | Path) -> dict[str, dict[str, RecordedTrial]]:
    """Reads the curves in a run's folder, or in a CSV, as `read_curves` does: trials by name, by group.

    Raises:
        UserError: There are none.
    """
    return read_run(path).groups if Path(path).is_dir() else read_curves(path)


def _trial(one: TrialRecord, names: Sequence[str]) -> RecordedTrial:
    train = {point.step: point.loss for point in one.train}
    steps = np.array([point.step for point in one.validation], np.float64)
    train_loss = [_number(train.get(point.step)) for point in one.validation]
    val_loss = [_number(point.loss) for point in one.validation]
    more = {name: _measured(one, one.more.get(name, {})) for name in names}
    curve = Curve(steps / one.total_steps, np.array(train_loss), np.array(val_loss), more)
    broken = one.status == "stopped" and one.detail.endswith(BAD_UPDATES)
    return RecordedTrial(steps, one.total_steps, curve, MilestoneSchedule(**one.schedule), broken)


def _measured(one: TrialRecord, losses: Mapping[int, float | None]) -> np.ndarray:
    """Values at each evaluation, float64 [n]: nan where it was not measured, inf where not finite."""
    measured = [losses.get(point.step, math.nan) for point in one.validation]
    bad = [point.step in losses and not math.isfinite(_number(losses[point.step])) for point in one.validation]
    return np.where(bad, math.inf, np.array([_number(loss) for loss in measured]))


def _number(loss: float | None) -> float:
    return math.nan if loss is None else loss


def _notes(record: RunRecord) -> list[str]:
    unfinished = sum(trial.status not in ("completed", "stopped") for trial in record.trials)
    ended = sum(trial.status == "stopped" for trial in record.trials)
    notes = []
    if unfinished:
        notes.append(f"{unfinished} of {len(record.trials)} trials have not ended: their curves are as far as they got")
    if ended:
        notes.append(
            f"{ended} of {len(record.trials)} trials were ended early and their curves stop there: savings and regret "
            "are against what was trained, and what rules that end fewer would have found is not known"
        )
    return notes
