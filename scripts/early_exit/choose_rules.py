"""Chooses the numbers of the `default` early-exit preset on recorded full grids, and says what they are worth.

    python scripts/early_exit/choose_rules.py docs/figures/averaged-curves.csv.gz [more.csv ...]

Groups named ``data-0``, ``data-1``, … are grids of one data set. Candidates differ in what trials are ranked by (raw
loss; each average that a grid has, as if trials carried that alone), in rungs, in how many go on, and in how many go on
at least. Every candidate meets the whole grids and many grids of 16 drawn from them. Of those that save enough the one
that loses least is chosen (`choose`). It is judged on grids that had no part in that: each data set, seed and schedule
by what is chosen on the others. What is said of the grids that it was chosen on stands in a table of its own. Regret is
in the results that runs have, averages among them where trials carry one; what these gain over the lowest raw loss of
the whole grid has its own column. The same command prints the same numbers.
"""

from jaxrun.process.script import run_script

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from drawn_grids import Drawn, Grid, draws, play, read_grids
from rich.console import Console
from rich.table import Table

from altojax.early_exit.curve import average_name
from altojax.early_exit.presets import PRESETS
from altojax.early_exit.rules import Rules
from jaxrun.config.script_options import ScriptOptions

SAVED = 0.65
"""Share of a whole grid's samples, and of its steps, that rules must save on average over grids they are chosen on."""
MORE_SAVED = 0.07
"""Candidates save at most so much more."""
AIM = {"grid_mean": 0.001, "grid_worst": 0.01, "drawn_mean": 0.002, "drawn_p95": 0.01}
"""Regrets that rules should stay below."""
SIZE, FEW, MANY = 16, 150, 1500
"""Trials of a drawn grid; draws of each grid that rules are chosen by, and that they are judged by."""

LADDERS = (
    (0.05,),
    (0.05, 0.2),
    (0.05, 0.5),
    (0.05, 0.2, 0.6),
    (0.05, 0.3, 0.6),
    (0.1, 0.4, 0.7),
    (0.1, 0.6, 0.8),
    (0.05, 0.2, 0.6, 0.8),
    (0.05, 0.3, 0.6, 0.8),
    (0.05, 0.15, 0.25, 0.6, 0.8),
)
KEPT = (0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)
"""Share of all trials that are left after a rung."""
AT_LEAST = (2, 4)
RAW = {"falling": 0.0, "noise": 0.0, "waits": False}
"""Numbers of the preset that candidates do without."""


@dataclass(frozen=True)
class Judged:
    """The outcome of a candidate on one grid and on grids drawn from it."""

    grid: Drawn
    drawn: Drawn


Results = Mapping[str, Sequence[Judged]]
"""What each candidate does on each grid, by its name."""


def ladders() -> Iterator[dict[str, Any]]:
    """Yields the numbers of `underperforming`: rungs, and the share of the living that go on at each."""
    for at, least in itertools.product(LADDERS, AT_LEAST):
        for left in itertools.combinations(KEPT, len(at)):
            ends = (*at[1:], 1.0)
            used = at[0] + sum(share * (end - begin) for share, begin, end in zip(left, at, ends, strict=True))
            even = all(before <= 2.5 * after for before, after in itertools.pairwise(left))
            if SAVED - 0.01 <= 1 - used <= SAVED + MORE_SAVED and even:
                keep = [round(after / before, 3) for before, after in itertools.pairwise((1.0, *left))]
                yield {"at": at, "keep": keep, "at_least": least}


def named(numbers: Mapping[str, Any]) -> str:
    """Returns a candidate's name."""
    at, keep = (" ".join(f"{100 * share:g}" for share in numbers[key]) for key in ("at", "keep"))
    return f"{keep} % at {at} %, {numbers['at_least']} at least"


def named_grid(grid: Grid) -> str:
    """Returns a grid's name."""
    return " ".join(filter(None, (grid.data, grid.seed, grid.schedule)))


def rankings(grids: Sequence[Grid]) -> dict[str, tuple[str, Sequence[Grid]]]:
    """Returns what trials can be ranked by: the rule's word for it, and the grids that have it, as their average."""
    found: dict[str, tuple[str, Sequence[Grid]]] = {"raw": ("last", grids)}
    for number, name in enumerate(map(average_name, range(9)), start=1):
        having = [grid.with_average(name) for grid in grids if name in grid.windows]
        if having:
            found[f"average {number}"] = "average", having
    return found


def judge(rules: Rules, grid: Grid, count: int) -> Judged:
    """Plays rules on a whole grid and on draws from it."""
    trials = len(grid.trials)
    return Judged(play(rules, grid, np.arange(trials)[None]), play(rules, grid, draws(count, SIZE, trials, seed=0)))


def told(judged: Sequence[Judged]) -> dict[str, float]:
    """Sums up what rules do on several grids, each of which counts as much."""
    grids, drawn = ([getattr(one, which) for one in judged] for which in ("grid", "drawn"))
    regrets, parts = (np.concatenate([one.regret for one in which]) for which in (grids, drawn))
    return {
        "saved": float(np.mean([one.saved.mean() for one in grids])),
        "steps": float(np.mean([one.saved_steps.mean() for one in grids])),
        "gain": float(np.mean([one.gain.mean() for one in grids])),
        "grid_mean": float(regrets.mean()),
        "grid_worst": float(regrets.max()),
        "drawn_saved": float(np.mean([one.saved.mean() for one in drawn])),
        "drawn_mean": float(parts.mean()),
        "drawn_p95": float(np.percentile(parts, 95)),
        "kept": float((parts <= 0).mean()),
    }


def choose(results: Results, among: Sequence[int]) -> str:
    """Returns the candidate that loses least, as measured by `AIM`, of those that save enough.

    What is lost is the mean over the grids and the most of any, as one data set is unlike another. Where none saves
    enough it is the one that saves most.

    Args:
        results: Of every candidate.
        among: Places of the grids that it is chosen by.
    """

    def cost(name: str) -> tuple[float, float]:
        said = [told([results[name][place]]) for place in among]
        saved = min(float(np.mean([one[key] for one in said])) for key in ("saved", "steps"))
        lost = [sum(one[key] / aim for key, aim in AIM.items()) + (1 - one["kept"]) for one in said]
        return max(SAVED - saved, 0.0), float(np.mean(lost)) + max(lost)

    return min(results, key=cost)


def held_out(results: Results, grids: Sequence[Grid]) -> dict[str, list[tuple[int, str]]]:
    """Chooses on some grids for the others.

    Returns:
        Place of a grid and the candidate chosen without it, by what was left out: data sets, and seeds and schedules
        where there are several.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for what in ("data", "seed", "schedule"):
        kinds = sorted({getattr(grid, what) for grid in grids})
        for kind in kinds if len(kinds) > 1 else ():
            out = [place for place, grid in enumerate(grids) if getattr(grid, what) == kind]
            winner = choose(results, [place for place in range(len(grids)) if place not in out])
            found.setdefault(f"{what} held out", []).extend((place, winner) for place in out)
    return found


def show(title: str, rows: Mapping[str, Sequence[Judged]]) -> None:
    """Prints one table of results."""
    heads = (
        "saved of 60",
        "steps",
        "averages gain",
        "regret mean",
        "worst",
        f"saved of {SIZE}",
        "mean",
        "p95",
        "best kept",
    )
    table = Table("", title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="right")
    for name, judged in rows.items():
        said = told(judged)
        digits = [1 if key in ("saved", "steps", "drawn_saved", "kept") else 2 for key in said]
        table.add_row(name, *(f"{value:.{places}%}" for value, places in zip(said.values(), digits, strict=True)))
    Console(width=200).print(table)


def presets(grids: Sequence[Grid]) -> dict[str, list[Judged]]:
    """Judges the shipped presets that need nothing which the curves lack."""
    columns = set.intersection(*(set(one.curve.more) for grid in grids for one in grid.trials.values()))
    rules = {name: Rules(preset=name) for name in PRESETS}
    return {name: [judge(one, grid, MANY) for grid in grids] for name, one in rules.items() if not one.lacking(columns)}


def main() -> None:
    """Reads the curves and prints the tables."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("curves", nargs="+")
    began, files = time.perf_counter(), parser.read().curves
    grids = read_grids(*files)
    print(f"{len(grids)} grids: {', '.join(f'{named_grid(grid)} ({len(grid.trials)} trials)' for grid in grids)}")
    numbers = {named(one): one for one in ladders()}
    outside: dict[str, list[Judged]] = {}
    inside: dict[str, list[Judged]] = {}
    for ranking, (rank_by, ranked) in rankings(grids).items():
        rules = {
            name: Rules.model_validate({"underperforming": {**RAW, **one, "rank_by": rank_by}})
            for name, one in numbers.items()
        }
        results = {name: [judge(one, grid, FEW) for grid in ranked] for name, one in rules.items()}
        for what, chosen in held_out(results, ranked).items():
            judged = [(ranked[place], judge(rules[name], ranked[place], MANY), name) for place, name in chosen]
            outside |= {f"{ranking}: {named_grid(grid)}, {what} <- {name}": [one] for grid, one, name in judged}
            outside[f"{ranking}: all {len(judged)}, {what}"] = [one for _, one, _ in judged]
        best = choose(results, range(len(ranked)))
        inside[f"{ranking}: {best}"] = [judge(rules[best], grid, MANY) for grid in ranked]
    print(f"{len(numbers)} ladders, each with every ranking")
    show("Each grid judged by what is chosen without its data set, or without its seed", outside)
    show("Chosen on all grids and judged on the same (in sample)", inside)
    show("The shipped presets", presets(grids))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    raise SystemExit(run_script(main))
