"""The arithmetic of reproduce_alto.py: what one at a time would take, regret of sub-grids, means."""

import csv
import gzip
import heapq
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from altojax.early_exit.replay import RecordedTrial, replay, summary
from altojax.early_exit.rule import SelectBy
from altojax.early_exit.rules import Rules
from altojax.report.curve_files import WARMUP
from altojax.report.run_record import RunRecord

RULES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "cautious": {"preset": "cautious"},
    "cautious, first rung at 5 %": {"preset": "cautious", "underperforming": {"at": [0.05, 0.6, 0.8], "waits": False}},
    "cautious, second rung at 40 %": {"preset": "cautious", "underperforming": {"at": [0.1, 0.4, 0.8]}},
    "cautious, keeping half at the first rung": {"preset": "cautious", "underperforming": {"keep": [0.5, 0.8, 0.5]}},
    "cautious, keeping 40 % at the last rung": {"preset": "cautious", "underperforming": {"keep": [0.7, 0.8, 0.4]}},
    "cautious, no margin for noise": {"preset": "cautious", "underperforming": {"noise": 0.0}},
    "cautious, 40 % and no margin": {"preset": "cautious", "underperforming": {"keep": [0.7, 0.8, 0.4], "noise": 0.0}},
    "cautious, falling trials not kept": {"preset": "cautious", "underperforming": {"falling": 0.0}},
    "eager": {"preset": "eager"},
    "eager, first rung at 5 %": {"preset": "eager", "underperforming": {"at": [0.05, 0.2, 0.4, 0.8], "waits": False}},
    "eager, keeping 50 % at the first rung": {"preset": "eager", "underperforming": {"keep": [0.5, 0.5, 0.5, 0.5]}},
    "eager, no margin for noise": {"preset": "eager", "underperforming": {"noise": 0.0}},
    "paper": {"preset": "paper"},
    "paper, comparing at 10 %": {"preset": "paper", "underperforming": {"at": [0.1]}},
    "paper, comparing at 20 %": {"preset": "paper", "underperforming": {"at": [0.2]}},
    "paper, keeping 50 %": {"preset": "paper", "underperforming": {"keep": [0.5]}},
    "paper, gap 30 %": {"preset": "paper", "overfitting": {"gap": 0.3}},
    "paper, without overfitting": {"preset": "paper", "overfitting": False},
    "paper, without diverging": {"preset": "paper", "diverging": False},
    "halving": {"preset": "halving"},
    "halving, from 1/8": {"preset": "halving", "halving": {"first": 0.125}},
    "median": {"preset": "median"},
    "topk": {"preset": "topk"},
    "topk, best 4": {"preset": "topk", "top_k": {"keep": 4}},
    "topk, at 10 %": {"preset": "topk", "top_k": {"steps": 0.1}},
}
"""Presets, and presets with a number changed."""


@dataclass(frozen=True)
class Alone:
    """What configurations take one at a time in each process, from a sample of them.

    Attributes:
        once_s: Seconds that a process pays once.
        each_s: Seconds that every configuration pays beside its steps.
        step_s: Seconds of a step, by batch size.
    """

    once_s: float
    each_s: float
    step_s: Mapping[int, float]

    def total_s(self, steps: Iterable[tuple[int, int]]) -> float:
        """Returns the seconds of configurations given as (batch size, steps)."""
        return self.shared_s(steps, 1)

    def shared_s(self, steps: Iterable[tuple[int, int]], processes: int) -> float:
        """Returns the seconds until the last of `processes` has ended, the longest configurations dealt out first."""
        free_s = [self.once_s] * processes
        for seconds in sorted((self.each_s + count * self.step_s[batch] for batch, count in steps), reverse=True):
            heapq.heapreplace(free_s, free_s[0] + seconds)
        return max(free_s)


def geometric_mean(values: Sequence[float]) -> float:
    """Returns the geometric mean of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))


def curve_rows(group: str, record: RunRecord) -> list[dict[str, Any]]:
    """Returns the curves of a run's trials as rows of the file that `altojax replay` reads.

    Losses of averaged adapters have columns where the run has any.
    """
    averages = sorted({name for trial in record.of_task(group) for name in trial.more})
    rows = []
    for trial in record.of_task(group):
        train = {point.step: point.loss for point in trial.train}
        for point in trial.validation:
            losses = {"train_loss": train.get(point.step), "val_loss": point.loss}
            losses |= {name: trial.more.get(name, {}).get(point.step) for name in averages}
            rows.append(
                {"group": group, "trial": trial.trial, "step": point.step, "max_steps": trial.total_steps}
                | {WARMUP: trial.config["warmup_ratio"]}
                | {name: "" if loss is None else f"{loss:.6g}" for name, loss in losses.items()}
            )
    return rows


def curves_csv_gz(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns rows as a gzipped CSV, the same bytes for the same rows; a column that a row lacks is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return gzip.compress(text.getvalue().encode(), mtime=0)


def sub_grids(
    trials: Mapping[str, RecordedTrial], size: int, draws: int, seed: int
) -> dict[str, dict[str, RecordedTrial]]:
    """Returns random draws of `size` of the trials, without any twice in a draw."""
    names, random = sorted(trials), np.random.default_rng(seed)
    drawn = {}
    for draw in range(draws):
        chosen = sorted(random.choice(len(names), min(size, len(names)), replace=False))
        drawn[f"draw {draw}"] = {names[i]: trials[names[i]] for i in chosen}
    return drawn


def regrets(
    groups: Mapping[str, Mapping[str, RecordedTrial]],
    *,
    size: int,
    draws: int,
    seed: int,
    select_by: SelectBy = "loss",
) -> list[dict[str, Any]]:
    """Replays all of `RULES` that may select so over full grids and over random sub-grids of them.

    Returns:
        For each rule and each group, and for all groups together: `rule`, `group`, and what
        `altojax.early_exit.replay.summary` says of the whole grid as `grid`, of its sub-grids as `sub_grids`.
    """
    drawn = {name: sub_grids(trials, size, draws, seed) for name, trials in groups.items()}
    rows = []
    for name, changes in RULES.items():
        try:
            rules = Rules.model_validate({**changes}).selecting_by(select_by)
        except ValueError:  # it compares losses alone
            continue
        whole = {group: replay(rules, {group: trials}) for group, trials in groups.items()}
        parts = {group: replay(rules, of_group) for group, of_group in drawn.items()}
        for outcomes in (whole, parts):
            outcomes["all"] = [one for of_group in list(outcomes.values()) for one in of_group]
        rows += [
            {"rule": name, "group": group, "grid": summary(whole[group]), "sub_grids": summary(parts[group])}
            for group in whole
        ]
    return rows
