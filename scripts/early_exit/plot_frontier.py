"""Draws what rules save against what they lose, ranked by raw losses and by averages, for each data set and schedule.

    python scripts/early_exit/plot_frontier.py docs/figures/averaged-curves.csv.gz [more.csv ...] [--out frontier.png]

A dot is a set of rungs and of shares kept at them; lines join those that no other beats in both. Marks are the
presets. Savings are of the samples of whole grids, losses the mean regret on grids of 16 drawn from them, of which a
panel counts all seeds. Regret is against the best of the whole grid: of raw losses, or averages among them where rules
rank by these; a panel's title says by how much that is lower.
"""

from jaxrun.process.script import run_script

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from choose_rules import RAW, RUNGS, SIZE, judge, presets, told
from drawn_grids import Grid, read_grids
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from altojax.early_exit.rules import Rules
from jaxrun.config.script_options import ScriptOptions
from jaxrun.plots.plot_style import INK, PALETTE
from jaxrun.plots.plots import save

DRAWS = 200
LADDERS = (
    (0.05,),
    (0.1,),
    (0.2,),
    (0.05, 0.2),
    (0.05, 0.5),
    (0.1, 0.6, 0.8),
    (0.05, 0.2, 0.6),
    (0.05, 0.2, 0.6, 0.8),
    RUNGS,
)
KEEP = (0.25, 0.4, 0.55, 0.7, 0.85)
FAMILIES = {"last": ("raw loss", PALETTE[1]), "average": ("averaged adapter", PALETTE[0])}
TICKS = (0.001, 0.01, 0.1, 1.0, 10.0)
LEAST = TICKS[0] / 100
"""Regret at which those that lose nothing are drawn."""
MARKERS = "o*s^vDPX"
"""Of the presets, in turn."""


def ladders() -> Iterator[dict[str, Any]]:
    """Yields rungs and shares kept, from those that save little to those that save nearly all."""
    for at in LADDERS:
        for first, rest in itertools.product(KEEP, KEEP if len(at) > 1 else (0.5,)):
            yield {"at": at, "keep": [first, *[rest] * (len(at) - 1)], "at_least": 2}


def points(grids: Sequence[Grid], rank_by: str) -> np.ndarray:
    """Returns savings and mean regret of every ladder on one data set's grids, float64 [ladders, 2]."""
    found = []
    for numbers in ladders():
        rules = Rules.model_validate({"underperforming": {**RAW, **numbers, "rank_by": rank_by}})
        said = told([judge(rules, grid, DRAWS) for grid in grids])
        found.append((said["saved"], said["drawn_mean"]))
    return np.array(found)


def frontier(found: np.ndarray) -> np.ndarray:
    """Returns those points, from those that save most, that lose less than any that saves as much or more."""
    ranked = found[np.lexsort((found[:, 1], -found[:, 0]))]
    return ranked[ranked[:, 1] < np.append(np.inf, np.minimum.accumulate(ranked[:, 1])[:-1])]


def picture(panels: Mapping[tuple[str, str], Sequence[Grid]]) -> Figure:
    """Returns the figure: a row for each data set, a column for each schedule.

    Args:
        panels: The grids of each data set and schedule.
    """
    rows, columns = (list(dict.fromkeys(key[place] for key in panels)) for place in (0, 1))
    size = (3.9 * len(columns), 3.3 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for (data, schedule), grids in panels.items():
        ax = axes[rows.index(data), columns.index(schedule)]
        ax.set_axis_on()
        _panel(ax, grids)
        gain = np.mean([judge(Rules(), grid, 1).grid.gain.mean() for grid in grids])
        ax.set_title(f"{data}, {schedule}\naverages gain {gain:.1%}", fontsize=10)
        ax.tick_params(labelbottom=True, labelleft=True)
    figure.supxlabel("samples saved of a whole grid, %")
    figure.supylabel(f"mean regret on grids of {SIZE}, %")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    title = "lines: the best rungs, ranked by; marks: presets"
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels) // 2, title=title, frameon=False)
    return figure


def _panel(ax: Axes, grids: Sequence[Grid]) -> None:
    for rank_by, (label, colour) in FAMILIES.items():
        found = points(grids, rank_by)
        _scatter(ax, found, colour, alpha=0.25, s=10)
        best = frontier(found)
        ax.plot(100 * best[:, 0], 100 * np.maximum(best[:, 1], LEAST), color=colour, label=label)
    for marker, (preset, judged) in zip(MARKERS, presets(grids).items(), strict=True):
        said = told(judged)
        at = (100 * said["saved"], 100 * max(said["drawn_mean"], LEAST))
        ax.plot(*at, marker, color=INK, markerfacecolor="none", markersize=6, label=preset)
    ax.set(yscale="log", xlim=(-2, 95))
    ax.grid(visible=True, alpha=0.3)
    ax.set_yticks(TICKS, [f"≤ {TICKS[0]:g}", *(f"{tick:g}" for tick in TICKS[1:])])
    ax.minorticks_off()


def _scatter(ax: Axes, found: np.ndarray, colour: str, **style: float) -> None:
    ax.scatter(100 * found[:, 0], 100 * np.maximum(found[:, 1], LEAST), color=colour, linewidths=0, **style)


def main() -> None:
    """Reads the curves and writes the picture."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("curves", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/frontier.png"))
    options = parser.read()
    panels: dict[tuple[str, str], list[Grid]] = {}
    for grid in read_grids(*options.curves):
        panels.setdefault((grid.data, grid.schedule), []).append(grid)
    save(picture(panels), options.out)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
