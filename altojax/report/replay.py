"""Replays recorded learning curves through the early-exit rules: what each would have saved, and what lost.

Rungs are where a run of these trials would have them (`altojax.early_exit.milestones`). A full grid runs every trial to
the last evaluation recorded; that is what savings are measured against. A trial's
result is its lowest validation loss up to where it was ended, since the best checkpoint is kept; the group's result is
the lowest among its trials.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from altojax.early_exit.milestones import rung_steps
from altojax.early_exit.presets import PRESETS
from altojax.early_exit.rules import Rules
from altojax.early_exit.signals import Curve
from altojax.report.curve_files import RecordedTrial, read_curves
from altojax.report.recorded_curves import read_run
from jaxrun.config.cli import Args, Positional, Verb
from jaxrun.config.config import StrictModel
from jaxrun.config.settings import read_settings
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError, nearest

DEFAULT_RULES = ("default", "eager", "paper", "halving", "median", "topk")
OWN = "own"
"""What a run's own rules are called."""


class ReplaySettings(StrictModel):
    """What ``altojax replay CURVES`` takes.

    Attributes:
        rules: Presets of early_exit, or own for those of the run, a list or with commas between them; null is all that
            compare trials, a run's own first.
        out: Write the results here as JSON.
    """

    rules: str | list[str] | None = None
    out: str | None = None


def run_replay(
    path: str | Path,
    rules: Sequence[str] | None = None,
    out: Path | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:
    """Replays the curves of a run, or of a file, through presets.

    Args:
        path: A run's folder; or CSV, plain or gzipped, with the columns group, trial, step, max_steps, train_loss,
            val_loss.
        rules: Names of presets, or `OWN` for those of the run; None is all that compare trials, a run's own first.
        out: Where to write the result as JSON.
        tell: Called with a line on what the curves lack.

    Returns:
        One row for each preset, in the order given: `rule` and what `summary` returns.

    Raises:
        UserError: There are no such curves, or there is no such preset.
    """
    path = Path(path)
    known = {name: Rules.model_validate({"preset": name}) for name in PRESETS}
    if path.is_dir():
        run = read_run(path)
        groups, known = run.groups, {OWN: run.rules, **known}
        for note in run.notes:
            tell(note)
    names = [name for name in (OWN, *DEFAULT_RULES) if name in known] if rules is None else rules
    if not names:
        raise UserError(f"no rules given, expected some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UserError(f"rules: given '{name}', expected some of {', '.join(known)}{nearest(name, known)}")
    if not path.is_dir():
        groups = read_curves(path)
    rows = [{"rule": name, **summary(replay(known[name], groups))} for name in names]
    if out is not None:
        write_atomic(out, json.dumps(rows, indent=2) + "\n")
    return rows


@dataclass(frozen=True)
class Outcome:
    """What rules made of one group.

    Attributes:
        run_steps: Steps run, over all trials.
        full_steps: Steps of the full grid.
        regret: How far the group's result is above the lowest loss of its full grid, divided by the size of that loss;
            inf where that loss is 0 and missed, nan where the grid has no finite validation loss.
    """

    run_steps: float
    full_steps: float
    regret: float


def replay(rules: Rules, groups: Mapping[str, Mapping[str, RecordedTrial]]) -> list[Outcome]:
    """Plays groups of trials, each of which competed with the others of its group, in the order given."""
    alarms = first_alarms(rules, groups)
    outcomes = []
    for name, trials in groups.items():
        ends = end_of_trials(rules, trials, alarms[name])
        run = sum(float(trials[trial].steps[end]) for trial, end in ends.items())
        full = sum(float(trial.steps[-1]) for trial in trials.values())
        best = min(_lowest(trial.curve.val_loss) for trial in trials.values())
        found = min(_lowest(trials[trial].curve.val_loss[: end + 1]) for trial, end in ends.items())
        outcomes.append(Outcome(run, full, _regret(found, best)))
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Sums up groups.

    Returns:
        Fractions: `saved`, the share of all steps of the full grids that was not run; `regret_mean`, `regret_p95` and
        `regret_max` over the groups; `best_kept`, the share of groups without any regret, which means that the best
        trial was not ended before its best evaluation. Groups whose regret is nan count for `saved` alone.
    """
    regrets = [outcome.regret for outcome in outcomes if not math.isnan(outcome.regret)] or [0.0]
    full = sum(outcome.full_steps for outcome in outcomes)
    with np.errstate(invalid="ignore"):  # between two infinite regrets is nan, which stands for infinite
        late = float(np.percentile(regrets, 95))
    return {
        "saved": 1.0 - sum(outcome.run_steps for outcome in outcomes) / full if full else 0.0,
        "regret_mean": float(np.mean(regrets)),
        "regret_p95": math.inf if math.isnan(late) else late,
        "regret_max": max(regrets),
        "best_kept": regrets.count(0.0) / len(regrets),
    }


def end_of_trials(rules: Rules, trials: Mapping[str, RecordedTrial], alarms: Mapping[str, int]) -> dict[str, int]:
    """Returns the index of the last evaluation that each trial of a group makes.

    A trial reaches a rung at its first evaluation there or later; one whose curve stops before waits there with what it
    has, one whose schedule does has ended. An alarm raised at the evaluation that reaches a rung comes before the
    comparison.

    Args:
        rules: The rules.
        trials: The group's trials by name.
        alarms: The evaluation at which each trial's own curve ends it, its number of evaluations where nothing does.
    """
    ends = {name: min(alarms[name], len(trial.steps) - 1) for name, trial in trials.items()}
    rungs = dict(zip(trials, rung_steps(rules, [trial.schedule for trial in trials.values()]), strict=True))
    living = dict(trials)
    for index in range(len(rules.rungs)):
        curves, at = {}, {}
        for name, trial in living.items():
            rung = rungs[name][index]
            reached = min(int(np.searchsorted(trial.steps, rung)), len(trial.steps) - 1)
            if rung < trial.max_steps and reached < alarms[name]:
                at[name], curves[name] = reached, _until(trial.curve, reached)
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
        train = np.stack([groups[group][name].curve.train_loss for group, name in members])
        val = np.stack([groups[group][name].curve.val_loss for group, name in members])
        for (group, name), index in zip(members, rules.first_alarm(train, val)[0], strict=True):
            broken = rules.ends_non_finite and groups[group][name].broken
            first[group][name] = min(int(index), val.shape[1] - 1) if broken else int(index)
    return first


def _regret(found: float, best: float) -> float:
    if math.isinf(best):
        return math.nan
    if found == best:
        return 0.0
    return (found - best) / abs(best) if best else math.inf


def _until(curve: Curve, last: int) -> Curve:
    return Curve(curve.fraction[: last + 1], curve.train_loss[: last + 1], curve.val_loss[: last + 1])


def _lowest(val_loss: np.ndarray) -> float:
    return float(np.min(val_loss, where=np.isfinite(val_loss), initial=np.inf))


def _run(args: Args) -> int:
    settings = read_settings(ReplaySettings, args.overrides)
    given = settings.rules.split(",") if isinstance(settings.rules, str) else settings.rules
    names = None if given is None else [name for part in given if (name := part.strip())]
    out = Path(settings.out) if settings.out else None
    console = Console()
    rows = run_replay(args["curves"], names, out, partial(console.print, markup=False, highlight=False, soft_wrap=True))
    table = Table(title=f"Early exit replayed on {Path(args['curves']).name}")
    table.add_column("rule")
    for heading in ("saved", "regret mean", "p95", "max", "best kept"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["rule"],
            f"{row['saved']:.1%}",
            *(f"{row[key]:.2%}" for key in ("regret_mean", "regret_p95", "regret_max")),
            f"{row['best_kept']:.1%}",
        )
    console.print(table)
    return 0


REPLAY = Verb(
    name="replay",
    help="Replay recorded learning curves through early-exit rules: steps saved and loss given up, for each rule.",
    run=_run,
    positionals=(Positional("curves", "the output_dir of a run, or a CSV of learning curves, plain or gzipped"),),
    overrides=True,
    settings=ReplaySettings,
    examples=(
        "altojax replay runs/quickstart",
        "altojax replay curves.csv.gz",
        f"altojax replay curves.csv rules={','.join(DEFAULT_RULES)} out=replay.json",
    ),
)
