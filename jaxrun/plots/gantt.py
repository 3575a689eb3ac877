"""Gantt charts: blocks over neighbouring lanes, as of a job on several GPUs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jaxrun.plots.plot_style import (
    GRID,
    INK,
    PAPER,
    area_handle,
    colours_of,
    compact,
    legend_right,
    new_figure,
    style,
    titles,
)
from jaxrun.plots.timeline import natural, readable_on

_MOST_LABELS, _MOST_EDGES = 400, 3000
_CHARACTER_IN = 0.075
_LINE_IN = 0.12
_WIDTH_IN, _PLOT_IN = 9.6, 7.4


@dataclass(frozen=True)
class GanttBlock:
    """Something that held neighbouring lanes from `start` to `end`.

    Attributes:
        first: Index of the lane at the top.
        lanes: How many, from there downwards.
        start: In the unit of the x axis.
        end: The same; not before `start`.
        label: Written inside where it fits.
        group: Decides the colour.
        faint: Whether it came to nothing.
    """

    first: int
    lanes: int
    start: float
    end: float
    label: str = ""
    group: str = ""
    faint: bool = False


def gantt(
    blocks: Sequence[GanttBlock],
    sections: Sequence[tuple[str, int]],
    *,
    title: str = "",
    x_label: str = "time (s)",
    mark: tuple[str, float] | None = None,
) -> Figure:
    """Draws blocks on lanes, coloured by group.

    Args:
        blocks: The blocks.
        sections: Names and numbers of lanes, from the top; a line parts them.
        title: Above the figure.
        x_label: With its unit.
        mark: A name and a time, drawn as a dashed line.
    """
    lanes = sum(count for _, count in sections)
    chosen = colours_of(sorted({block.group for block in blocks}, key=natural))
    height_in = min(max(1.6, 0.26 * lanes), 8.0)
    start = min((block.start for block in blocks), default=0.0)
    end = max([block.end for block in blocks] + ([mark[1]] if mark else []), default=1.0)
    length = (end - start) or 1.0
    with style():
        figure, axes = new_figure(_WIDTH_IN, height_in + 1.2)
        # One edge of paper between blocks reads well as long as blocks are wider than the edge.
        edge = 0.6 if len(blocks) <= _MOST_LABELS else 0.15 if len(blocks) <= _MOST_EDGES else 0.0
        gap = 0.06 if height_in / max(lanes, 1) > 0.1 else 0.0
        axes.add_collection(
            PolyCollection(
                [_corners(block, gap) for block in blocks],
                facecolors=[(chosen[block.group], 0.35 if block.faint else 1.0) for block in blocks],
                edgecolors=PAPER,
                linewidths=edge,
                zorder=2,
            )
        )
        for block in blocks if len(blocks) <= _MOST_LABELS else ():
            fits_across = len(block.label) * _CHARACTER_IN < (block.end - block.start) / length * _PLOT_IN
            if block.label and fits_across and block.lanes * height_in / lanes > _LINE_IN:
                axes.text(
                    (block.start + block.end) / 2,
                    block.first + block.lanes / 2 - 0.5,
                    block.label,
                    ha="center",
                    va="center_baseline",
                    fontsize=7.5,
                    color=INK if block.faint else readable_on(chosen[block.group]),
                    clip_on=True,
                    zorder=3,
                )
        _sections(axes, sections, lanes)
        if mark is not None and math.isfinite(mark[1]):
            axes.axvline(mark[1], color=INK, linewidth=1.1, linestyle=(0, (4, 3)), zorder=4)
            axes.annotate(
                mark[0], (mark[1], 1.0), xycoords=("data", "axes fraction"), xytext=(-3, 3), textcoords="offset points",
                ha="right", fontsize=8.5, color=INK,
            )  # fmt: skip
        axes.set_xlim(start - 0.005 * length, end + 0.01 * length)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.xaxis.set_major_locator(MaxNLocator(8))
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        titles(axes, title, x_label, "")
        legend_right(axes, [area_handle(group, colour) for group, colour in chosen.items() if group])
    return figure


def _corners(block: GanttBlock, gap: float) -> list[tuple[float, float]]:
    top, bottom = block.first - 0.5 + gap, block.first + block.lanes - 0.5 - gap
    return [(block.start, top), (block.end, top), (block.end, bottom), (block.start, bottom)]


def _sections(axes, sections: Sequence[tuple[str, int]], lanes: int) -> None:
    """Names sections at their middle, as many as there is room for, and parts them by lines."""
    ticks, names, first = [], [], 0
    every = max(1, math.ceil(len(sections) / 32))
    for number, (name, count) in enumerate(sections):
        if number % every == 0:
            ticks.append(first + count / 2 - 0.5)
            names.append(name)
        if first and len(sections) <= 64:
            axes.axhline(first - 0.5, color=GRID, linewidth=0.8, zorder=1)
        first += count
    axes.set_yticks(ticks, names)
    axes.set_ylim(max(lanes, 1) - 0.5, -0.5)
