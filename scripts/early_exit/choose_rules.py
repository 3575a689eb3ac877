"""Chooses the numbers of the `default` early-exit preset on recorded full grids, and says what they are worth.

    python scripts/early_exit/choose_rules.py docs/figures/averaged-curves.csv.gz [more.csv ...]

Groups named ``data-0``, ``data-1``, … are grids of one data set. Rules differ in what trials are ranked by (raw loss;
each average that a grid has, as if trials carried that alone), in rungs, and in how many go on. For each ranking, or
those of `--rankings`, and for the rungs of `--rungs` a local search looks for the shares that lose least of those that
save enough (`cost`): it begins at the same plain shares every time, and meets whole grids and grids of 16 drawn from
them. What it finds is judged on grids that had no part in that: each data set, seed and schedule by what is found on
the others, on draws of their own. What is said of the grids that it was found on stands in a table of its own. Regret
is in the results that runs have, averages among them where trials carry one; what these gain over the lowest raw loss
of the whole grid has its own column. The same command prints the same numbers.
"""

from jaxrun.process.script import run_script

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
AIM = {"grid_mean": 0.001, "grid_worst": 0.01, "drawn_mean": 0.002, "drawn_p95": 0.01}
"""Regrets that rules should stay below."""
SIZE, FEW, MANY = 16, 200, 1500
"""Trials of a drawn grid; draws of each grid that rules are chosen by, and that they are judged by."""
RUNGS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
AT_LEAST = 4
BEGIN = 0.62
"""Share of all trials that the search leaves after the first rung when it begins."""
TRIES = 300
"""Changes that a search tries."""
RAW = {"falling": 0.0, "noise": 0.0, "waits": False}
"""Numbers of the preset that candidates do without."""


@dataclass(frozen=True)
class Judged:
    """The outcome of a candidate on one grid and on grids drawn from it."""

    grid: Drawn
    drawn: Drawn


def numbers(at: Sequence[float], left: Sequence[float]) -> dict[str, Any]:
    """Returns the numbers of `underperforming`, of which a share of all trials is left after each rung."""
    keep = [round(after / before, 3) for before, after in itertools.pairwise((1.0, *left))]
    return {**RAW, "at": tuple(at), "keep": tuple(keep), "at_least": AT_LEAST}


def samples_left(at: Sequence[float], left: Sequence[float]) -> float:
    """Returns the share of all samples that is trained, were trials divisible."""
    return at[0] + sum(share * (end - begin) for share, begin, end in zip(left, at, (*at[1:], 1.0), strict=True))


def beginning(at: Sequence[float]) -> tuple[float, ...]:
    """Returns shares that fall evenly, by as much for each part of the schedule, and save about what they must."""
    for speed in np.arange(0.5, 9.0, 0.05):
        left = tuple(round(BEGIN * float(np.exp(-speed * (rung - at[0]))), 2) for rung in at)
        if samples_left(at, left) < 1 - SAVED - 0.015:
            break
    return left


def named(rules: Rules) -> str:
    """Returns rules' name: how many of all trials are left after each rung."""
    rule = rules.underperforming  # type: ignore[attr-defined]
    left = itertools.accumulate(rule.keep, lambda before, keep: before * keep)
    return " ".join(f"{100 * share:.0f}" for share in left)


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


def judge(rules: Rules, grid: Grid, count: int, seed: int = 0) -> Judged:
    """Plays rules on a whole grid and on draws from it."""
    trials = len(grid.trials)
    return Judged(play(rules, grid, np.arange(trials)[None]), play(rules, grid, draws(count, SIZE, trials, seed)))


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


def cost(said: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """Returns how bad rules are, the less the better.

    First comes what they fail to save; then what they lose, as measured by `AIM`: the mean over the grids and the most
    of any, as one data set is unlike another.

    Args:
        said: What `told` says of each grid.
    """
    saved = min(float(np.mean([one[key] for one in said])) for key in ("saved", "steps"))
    lost = [sum(one[key] / aim for key, aim in AIM.items()) + (1 - one["kept"]) for one in said]
    return max(SAVED - saved, 0.0), float(np.mean(lost)) + max(lost)


def search(at: Sequence[float], price: Callable[[tuple[float, ...]], tuple[float, float]]) -> tuple[float, ...]:
    """Looks for the shares of all trials to leave after each rung that cost least.

    One to three of them change at a time, by up to 0.06, and what costs no more is gone on from.

    Args:
        at: Rungs.
        price: Says what shares cost.
    """
    random = np.random.default_rng(0)
    now = best = beginning(at)
    paid = least = price(now)
    for _ in range(TRIES):
        changed = np.array(now)
        places = random.integers(len(at), size=random.integers(1, 4))
        changed[places] += random.choice([-0.06, -0.04, -0.02, -0.01, 0.01, 0.02, 0.04, 0.06], size=len(places))
        new = tuple(np.round(changed, 2).tolist())
        falls = all(after < before for before, after in itertools.pairwise((0.96, *new, 0.03)))
        if not falls or not 0.29 <= samples_left(at, new) <= 1.005 - SAVED:
            continue
        asked = price(new)
        if asked <= paid:
            now, paid = new, asked
        if asked < least:
            best, least = new, asked
    return best


def found(rank_by: str, at: Sequence[float], grids: Sequence[Grid]) -> Rules:
    """Returns the rules of these rungs that `search` finds on some grids."""

    def rules(left: tuple[float, ...]) -> Rules:
        return Rules.model_validate({"underperforming": {**numbers(at, left), "rank_by": rank_by}})

    return rules(search(at, lambda left: cost([told([judge(rules(left), grid, FEW)]) for grid in grids])))


def held_out[T](grids: Sequence[Grid], choose: Callable[[Sequence[Grid]], T]) -> dict[str, list[tuple[int, T]]]:
    """Chooses on some grids for the others.

    Returns:
        Place of a grid and what was chosen without it, by what was left out: data sets, and seeds and schedules where
        there are several.
    """
    found: dict[str, list[tuple[int, T]]] = {}
    for what in ("data", "seed", "schedule"):
        kinds = sorted({getattr(grid, what) for grid in grids})
        for kind in kinds if len(kinds) > 1 else ():
            winner = choose([grid for grid in grids if getattr(grid, what) != kind])
            out = [(place, winner) for place, grid in enumerate(grids) if getattr(grid, what) == kind]
            found.setdefault(f"{what} held out", []).extend(out)
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
    usable = {name: one for name, one in rules.items() if not one.lacking(columns)}
    return {name: [judge(one, grid, MANY, seed=1) for grid in grids] for name, one in usable.items()}


def main() -> None:
    """Reads the curves and prints the tables."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("curves", nargs="+")
    parser.add_argument("--rungs", type=float, nargs="+", default=RUNGS)
    parser.add_argument("--rankings", nargs="+", choices=("raw", *(f"average {n}" for n in range(1, 10))))
    options, began = parser.read(), time.perf_counter()
    grids = read_grids(*options.curves)
    print(f"{len(grids)} grids: {', '.join(f'{named_grid(grid)} ({len(grid.trials)} trials)' for grid in grids)}")
    outside: dict[str, list[Judged]] = {}
    inside: dict[str, list[Judged]] = {}
    for ranking, (rank_by, ranked) in rankings(grids).items():
        if ranking not in (options.rankings or [ranking]):
            continue
        choose = partial(found, rank_by, options.rungs)
        for what, chosen in held_out(ranked, choose).items():
            judged = [(ranked[place], judge(rules, ranked[place], MANY, seed=1), rules) for place, rules in chosen]
            outside |= {
                f"{ranking}: {named_grid(grid)}, {what} <- {named(rules)}": [one] for grid, one, rules in judged
            }
            outside[f"{ranking}: all {len(judged)}, {what}"] = [one for _, one, _ in judged]
        best = choose(ranked)
        inside[f"{ranking}: {named(best)}"] = [judge(best, grid, MANY, seed=1) for grid in ranked]
    show("Each grid judged by what is chosen without its data set, or without its seed", outside)
    show("Chosen on all grids and judged on the same (in sample), on other draws", inside)
    show("The shipped presets", presets(grids))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    raise SystemExit(run_script(main))
