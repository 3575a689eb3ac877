"""Chooses the numbers of the `default` early-exit preset on recorded learning curves, and says what they are worth.

    python scripts/early_exit/choose_rules.py docs/figures/alto-curves.csv.gz [more.csv ...]

Groups named ``task-0``, ``task-1``, … are of one task. All trials of a task are pooled and dealt into grids of 16
and of 30, so that every candidate meets many. It must lose at most 0.5 % on their mean and 2 % on any; of those that
do, the one that saves most is chosen. For each task in turn the candidate that is chosen on the *other* tasks is judged
on that one: those held-out rows are what to expect on a new task. The last tables hold the shipped presets, the shipped
default with one thing changed, and other sizes of grid. The same command prints the same numbers; about three minutes.
"""

from jaxrun.process.script import run_script

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from altojax.early_exit.presets import PRESETS
from altojax.early_exit.replay import RecordedTrial, ReplayedGroup, replay, summary
from altojax.early_exit.rules import Rules
from altojax.report.curve_files import read_curves
from jaxrun.config.script_options import ScriptOptions

Grids = Mapping[str, Mapping[str, RecordedTrial]]

MEAN_REGRET, WORST_REGRET = 0.005, 0.02
"""What a candidate may lose on the grids that it is chosen by, on average and in any of them."""

LADDERS = {
    "10 20 40 80": (0.1, 0.2, 0.4, 0.8),
    "10 40 80": (0.1, 0.4, 0.8),
    "10 60 80": (0.1, 0.6, 0.8),
}
FIRST_KEEP = (0.3, 0.5, 0.7)
MIDDLE_KEEP = (0.5, 0.7, 0.8)
LAST_KEEP, NOISE = 0.5, 6.0
FALLING = (0.0, 0.1, 0.2)

CHANGES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "no falling trials kept": {"underperforming": {"falling": 0.0}},
    "no noise margin": {"underperforming": {"noise": 0.0}},
    "noise margin 3": {"underperforming": {"noise": 3.0}},
    "40 % kept at the last rung": {"underperforming": {"keep": (0.7, 0.8, 0.4)}},
    "40 % kept and no noise margin": {"underperforming": {"keep": (0.7, 0.8, 0.4), "noise": 0.0}},
    "half kept at the first rung": {"underperforming": {"keep": (0.5, 0.8, 0.5)}},
    "rank by last": {"underperforming": {"rank_by": "last"}},
    "horizon 0.3": {"underperforming": {"horizon": 0.3}},
    "span 0.05": {"underperforming": {"span": 0.05}},
    "without blown up": {"blown_up": False},
    "with stalled, patience 5": {"stalled": {"patience": 5}},
    "with stalled, patience 10": {"stalled": {"patience": 10}},
    "with overfitting, gap 0.1": {"overfitting": {"gap": 0.1}},
    "with overfitting, gap 0.5": {"overfitting": {"gap": 0.5}},
    "with diverging, w 2": {"diverging": {}},
    "with diverging, w 5, p 3": {"diverging": {"window": 5, "patience": 3}},
}


def deal(task: Mapping[str, RecordedTrial], size: int, count: int, seed: int) -> Grids:
    """Deals `count` groups of `size` trials of one task, each without repeats."""
    names, random = list(task), np.random.default_rng(seed)
    chosen = (random.choice(len(names), min(size, len(names)), replace=False) for _ in range(count))
    return {
        f"{size} of {len(names)}, {k}": {names[i]: task[names[i]] for i in sorted(picked)}
        for k, picked in enumerate(chosen)
    }


def pool(groups: Grids) -> dict[str, dict[str, RecordedTrial]]:
    """Puts together the groups of each task."""
    tasks: dict[str, dict[str, RecordedTrial]] = {}
    for group, trials in groups.items():
        task = tasks.setdefault(group.rsplit("-", 1)[0], {})
        task.update({f"{group}/{name}": trial for name, trial in trials.items()})
    return tasks


def candidates() -> dict[str, Rules]:
    """The grid of ladders that the default is chosen from, by a name that tells them apart."""
    found = {}
    for (label, at), first, middle, falling in itertools.product(LADDERS.items(), FIRST_KEEP, MIDDLE_KEEP, FALLING):
        keep = (first, *[middle] * (len(at) - 2), LAST_KEEP)
        ladder = {"at": at, "keep": keep, "falling": falling, "noise": NOISE}
        found[f"{label}: {first:g}, {middle:g}, falling {falling:g}"] = Rules.model_validate(
            {"underperforming": ladder}
        )
    return found


def choose(results: Mapping[str, Mapping[str, Sequence[ReplayedGroup]]], tasks: Sequence[str]) -> str:
    """Returns the candidate that saves most on the tasks of those that lose little; else the one that loses least."""

    def cost(name: str) -> tuple[float, float]:
        chosen_on = summary([outcome for task in tasks for outcome in results[name][task]])
        mean, worst = chosen_on["regret_mean"], chosen_on["regret_max"]
        too_much = max(mean / MEAN_REGRET, worst / WORST_REGRET, 1.0)
        return round(too_much, 4), -chosen_on["saved"]

    return min(results, key=cost)


def show(title: str, rows: Mapping[str, Sequence[ReplayedGroup]]) -> None:
    """Prints one table of results."""
    table = Table("", "saved", "regret mean", "p95", "max", "best kept", title=title, title_justify="left")
    for name, outcomes in rows.items():
        row = summary(outcomes)
        regrets = (f"{row[key]:.2%}" for key in ("regret_mean", "regret_p95", "regret_max"))
        table.add_row(name, f"{row['saved']:.1%}", *regrets, f"{row['best_kept']:.1%}")
    Console(width=130).print(table)


def main() -> None:
    """Reads the curves and prints the tables."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("curves", nargs="+")
    began, files = time.perf_counter(), parser.read().curves
    given = {group: trials for file in files for group, trials in read_curves(file).items()}
    tasks = pool(given)
    dealt = {
        task: {**deal(trials, 16, 250, seed), **deal(trials, 30, 60, seed + 50)}
        for seed, (task, trials) in enumerate(tasks.items())
    }
    everything = {f"{task} {name}": group for task, groups in dealt.items() for name, group in groups.items()}

    grid = candidates()
    results = {name: {task: replay(rules, groups) for task, groups in dealt.items()} for name, rules in grid.items()}
    held_out = {}
    for task in tasks:
        winner = choose(results, [other for other in tasks if other != task])
        held_out[f"{task} <- {winner}"] = results[winner][task]
    held_out["all, held out"] = [outcome for outcomes in held_out.values() for outcome in outcomes]
    show("Each task judged by the candidate that is chosen on the others", held_out)
    winner = choose(results, list(tasks))
    show(
        "Chosen on all tasks (not held out)",
        {winner: [outcome for outcomes in results[winner].values() for outcome in outcomes]},
    )

    show("The file's own groups", {name: replay(Rules.model_validate({"preset": name}), given) for name in PRESETS})
    default = {task: replay(Rules(), groups) for task, groups in dealt.items()}
    show("The shipped default, task by task", {**default, "all": replay(Rules(), everything)})
    changed = {name: replay(Rules.model_validate(change), everything) for name, change in CHANGES.items()}
    show("The shipped default with one thing changed", changed)
    sizes = {}
    for size in (4, 8, 16, 30, 60, 240):
        groups = [deal(trials, size, 40, 100 + seed) for seed, trials in enumerate(tasks.values())]
        sizes[f"{size} trials"] = [outcome for group in groups for outcome in replay(Rules(), group)]
    show("The shipped default on grids of other sizes", sizes)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    raise SystemExit(run_script(main))
