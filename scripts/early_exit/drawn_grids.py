"""Early-exit rules on thousands of grids drawn from recorded ones, all draws of a rule at once.

Answers are those of `altojax.early_exit.replay`, with samples beside steps, for the rules of this package.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import pyarrow.csv

from altojax.early_exit.comparisons.median import Median
from altojax.early_exit.comparisons.underperforming import Underperforming, projected_loss, scatter
from altojax.early_exit.curve import AVERAGE, average_name
from altojax.early_exit.milestones import rung_steps
from altojax.early_exit.replay import RecordedTrial, first_alarms, result_losses
from altojax.early_exit.rule import Comparison
from altojax.early_exit.rules import Rules
from altojax.early_exit.signals import finite_or_nan, last_loss, mean_loss
from altojax.report.curve_files import read_curves


@dataclass(frozen=True)
class Grid:
    """One recorded grid of trials that all trained to their end.

    Attributes:
        data: Its data set.
        seed: What tells it from other grids of the data set.
        trials: By name, in the order of their names.
        schedule: Of their learning rates, where that is known.
        known: What rules have asked about its trials before, by what decides it.
    """

    data: str
    seed: str
    trials: Mapping[str, RecordedTrial]
    schedule: str = ""
    known: dict[str, list[np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def windows(self) -> list[str]:
        """Names of the averages that were measured at every evaluation of every trial."""
        curves = [one.curve for one in self.trials.values()]
        return [
            name
            for name in map(average_name, range(9))
            if all(name in curve.more and not np.isnan(curve.more[name]).any() for curve in curves)
        ]

    def with_average(self, name: str) -> "Grid":
        """Returns the grid as it is where its trials carry no other average than the one of that name."""
        changed = {
            trial: replace(one, curve=replace(one.curve, more={AVERAGE: one.curve.more[name]}))
            for trial, one in self.trials.items()
        }
        return Grid(self.data, self.seed, changed, self.schedule)


@dataclass(frozen=True)
class Drawn:
    """The outcome of rules on grids drawn from one.

    Attributes:
        saved: Share of all schedules that was not run, float64 [draws]: of the samples, where trials have equally many.
        saved_steps: The same of the optimizer steps, as `altojax.early_exit.replay.summary` counts.
        regret: How far the result is above the best of the whole draw, divided by that, float64 [draws].
        gain: How far that best is below the lowest raw loss of the draw, divided by that, float64 [draws].
    """

    saved: np.ndarray
    saved_steps: np.ndarray
    regret: np.ndarray
    gain: np.ndarray


def grids_of(
    groups: Mapping[str, Mapping[str, RecordedTrial]], schedules: Mapping[str, str] = MappingProxyType({})
) -> list[Grid]:
    """Returns recorded groups as grids: ``banking77-2`` is of the data set ``banking77``.

    Args:
        groups: Trials by name, by group.
        schedules: Of the learning rates of a group.
    """
    found = []
    for name, trials in groups.items():
        data, _, seed = name.rpartition("-")
        found.append(Grid(data or name, seed, dict(sorted(trials.items())), schedules.get(name, "")))
    return found


def read_grids(*files: str) -> list[Grid]:
    """Reads grids from files of curves, of which a column ``schedule`` says how the learning rates of a group went."""
    found = []
    for file in files:
        groups, table = read_curves(file), pyarrow.csv.read_csv(file)
        schedules = {}
        if "schedule" in table.column_names:
            schedules = dict(zip(table["group"].to_pylist(), table["schedule"].to_pylist(), strict=True))
        found += grids_of(groups, schedules)
    return found


@functools.cache
def draws(count: int, size: int, of: int, seed: int) -> np.ndarray:
    """Returns random draws of `size` of `of` trials, none twice in a draw: int64 [count, size], ascending."""
    random = np.random.default_rng(seed)
    return np.sort([random.choice(of, min(size, of), replace=False) for _ in range(count)], axis=1)


def play(rules: Rules, grid: Grid, drawn: np.ndarray) -> Drawn:
    """Plays rules over draws of a grid's trials, each draw a run of its own.

    Args:
        rules: Any of the package's, with whatever numbers.
        grid: The grid; its rungs are those of all its trials.
        drawn: Trials of each draw, by their places in the grid, int64 [draws, size], ascending.
    """
    share, steps, raw, last, alarm = _facts(rules, grid)
    lowest = _results(rules, grid)
    end = np.minimum(alarm, last)[drawn]
    living, rule = np.ones(drawn.shape, bool), rules.comparison
    for index, (reached, loss, mean, heading, noise) in enumerate(_rungs(rules, grid)):
        here = living & (reached >= 0)[drawn] & (reached < alarm)[drawn]
        count = here.sum(axis=1)
        assert rule is not None
        keep = np.array([rule.keeps(index, n) if n else 0 for n in range(drawn.shape[1] + 1)])[count]
        losses = np.where(here, loss[drawn], np.inf)
        place = _places(losses)
        kept = place < keep[:, None]
        if isinstance(rule, Median):
            peers = np.where(np.isfinite(losses), mean[drawn], np.nan)
            kept = losses <= np.nanmedian(np.where(np.isfinite(peers).any(axis=1)[:, None], peers, 0), axis=1)[:, None]
        if isinstance(rule, Underperforming) and rule.noise:
            usual = np.nanmedian(np.where(kept & np.isfinite(losses), noise[drawn], np.nan), axis=1)
            margin = losses.min(axis=1) + rule.noise * np.nan_to_num(usual)
            kept |= (losses <= margin[:, None]) & (place < 2 * keep[:, None])
        if isinstance(rule, Underperforming) and rule.falling:
            most = np.maximum(1, np.ceil(rule.falling * count - 1e-9))
            kept |= _places(np.where(here, heading[drawn], np.inf)) < most[:, None]
        out = here & ~(kept & np.isfinite(losses))
        end = np.where(out, reached[drawn], end)
        # Whose own curve or schedule has ended by now is compared no more.
        living = here & ~out
    best, found = lowest[drawn, last[drawn]].min(axis=1), lowest[drawn, end].min(axis=1)
    best_raw = raw[drawn, last[drawn]].min(axis=1)
    whole = steps[drawn, last[drawn]].sum(axis=1)
    saved = 1 - share[drawn, end].mean(axis=1) / share[drawn, last[drawn]].mean(axis=1)
    regret, gain = (found - best) / np.abs(best), (best_raw - best) / np.abs(best_raw)
    return Drawn(saved, 1 - steps[drawn, end].sum(axis=1) / whole, regret, gain)


def _places(losses: np.ndarray) -> np.ndarray:
    """Each trial's place in its draw, from 0; of equal losses the earlier trial is first."""
    return losses.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")


def _facts(rules: Rules, grid: Grid) -> list[np.ndarray]:
    """Share, steps and lowest raw loss so far at each evaluation [trials, n]; the last evaluation; the alarm."""
    key = f"alarms {[(rule.name, rule.model_dump_json()) for rule in rules.alarms]} {rules.smoothing}"
    if key not in grid.known:
        trials = list(grid.trials.values())
        alarms = first_alarms(rules, {"": grid.trials})[""]
        grid.known[key] = [
            _filled([one.steps / one.max_steps for one in trials]),
            _filled([one.steps for one in trials]),
            _lowest([one.curve.val_loss for one in trials]),
            np.array([len(one.steps) - 1 for one in trials]),
            np.array([alarms[name] for name in grid.trials]),
        ]
    return grid.known[key]


def _results(rules: Rules, grid: Grid) -> np.ndarray:
    """The best result of each trial by each evaluation, float64 [trials, n]."""
    key = f"results {rules.lacking(set())} {rules.rungs}"
    if key not in grid.known:
        grid.known[key] = [_lowest(list(result_losses(rules, grid.trials).values()))]
    return grid.known[key][0]


def _lowest(losses: Sequence[np.ndarray]) -> np.ndarray:
    """The lowest loss of each trial by each evaluation, inf before the first that is finite: float64 [trials, n]."""
    return np.nan_to_num(_filled([np.fmin.accumulate(finite_or_nan(one)) for one in losses]), nan=np.inf)


def _filled(values: Sequence[np.ndarray]) -> np.ndarray:
    most = max(map(len, values))
    return np.stack([np.pad(one, (0, most - len(one)), mode="edge") for one in values])


def _rungs(rules: Rules, grid: Grid) -> list[list[np.ndarray]]:
    """For each rung: the evaluation that reaches it, -1 where there is none; loss, mean loss, projection and noise."""
    if rules.comparison is None:
        return []
    key = f"steps {rules.rungs} {rules.evaluations} {rules.waits_for_second}"
    if key not in grid.known:
        steps = rung_steps(rules, [one.schedule for one in grid.trials.values()])
        grid.known[key] = list(np.array(steps).T)
    return [_rung(rules.comparison, grid, steps) for steps in grid.known[key]]


def _rung(rule: Comparison, grid: Grid, steps: np.ndarray) -> list[np.ndarray]:
    reads = (rule.span, rule.horizon) if isinstance(rule, Underperforming) and (rule.noise or rule.falling) else None
    key = f"rung {steps.tolist()} {rule.name} {rule.rank_by} {reads}"
    if key not in grid.known:
        trials = list(grid.trials.values())
        reached = [
            min(int(np.searchsorted(one.steps, step)), len(one.steps) - 1) if step < one.max_steps else -1
            for one, step in zip(trials, steps, strict=True)
        ]
        seen = [one.curve.first(max(at, 0) + 1) for one, at in zip(trials, reached, strict=True)]
        finite = [np.isfinite(last_loss(curve)) for curve in seen]
        curves = {str(i): rule.judged(curve) for i, curve in enumerate(seen)}
        found = np.where(finite, list(rule.losses(curves).values()), np.inf)
        heading = noise = mean = np.zeros(len(trials))
        if isinstance(rule, Median):
            mean = np.array([mean_loss(one) for one in curves.values()])
        if reads:
            span, horizon = reads
            heading = np.array([projected_loss(one, span=span, horizon=horizon) for one in curves.values()])
            noise = np.array([scatter(one, span=span) for one in curves.values()])
        grid.known[key] = [np.array(reached), found, mean, np.where(np.isfinite(found), heading, np.inf), noise]
    return grid.known[key]
