"""Timelines: spans on lanes, or on several neighbouring ones, as of a job on several GPUs."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
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

_LANE_IN, _MOST_HEIGHT_IN = 0.3, 12.0
_MOST_LABELS, _MOST_EDGES = 400, 3000
_CHARACTER_IN, _LINE_IN = 0.08, 0.12
_PLOT_SHARE = 0.74
"""Of the width; the rest is names and the legend."""


@dataclass(frozen=True)
class Span:
    """Something that held a lane, or neighbouring ones, from `start` to `end`.

    Attributes:
        lane: Its name, e.g. a slot's number; where lanes come in sections, the index of the first from the top.
        start: In the unit of the x axis.
        end: The same; not before `start`.
        label: Written inside where it fits.
        group: Decides the colour.
        lanes: How many lanes, from the first downwards.
        faint: Whether it came to nothing.
    """

    lane: int | str
    start: float
    end: float
    label: str = ""
    group: str = ""
    lanes: int = 1
    faint: bool = False


def timeline(
    spans: Sequence[Span],
    sections: Sequence[tuple[str, int]] | None = None,
    *,
    title: str = "",
    x_label: str = "time (s)",
    lane_label: str = "",
    colours: dict[str, str] | None = None,
    mark: tuple[str, float] | None = None,
    width_in: float = 8.4,
) -> Figure:
    """Draws spans on lanes, coloured by group.

    Args:
        spans: The spans; one that is not finite is left out.
        sections: Names and numbers of lanes, from the top, parted by lines; None is a lane for each name.
        title: Above the figure.
        x_label: With its unit.
        lane_label: What a lane is.
        colours: Colours for certain groups.
        mark: A name and a time, drawn as a dashed line.
        width_in: Of the figure, in inches.
    """
    spans = [span for span in spans if math.isfinite(span.start) and math.isfinite(span.end)]
    parted = sections is not None
    if sections is None:
        names = sorted({span.lane for span in spans}, key=_natural)
        at = {name: index for index, name in enumerate(names)}
        spans = [replace(span, lane=at[span.lane]) for span in spans]
        sections = [(str(name), 1) for name in names]
    lanes = max(sum(count for _, count in sections), 1)
    height_in = min(max(lanes, 2) * _LANE_IN, _MOST_HEIGHT_IN)
    start = min((span.start for span in spans), default=0.0)
    end = max([span.end for span in spans] + ([mark[1]] if mark else []), default=1.0)
    length = (end - start) or 1.0
    groups = [span.group for span in spans]
    chosen = colours_of(sorted(set(groups), key=_natural) if parted else groups, colours)
    with style():
        figure, axes = new_figure(width_in, height_in + 1.3)
        axes.add_collection(_blocks(spans, chosen, gap=0.1 if height_in / lanes > 0.1 else 0.0))
        for span in spans if len(spans) <= _MOST_LABELS else ():
            room_in = (span.end - span.start) / length * width_in * _PLOT_SHARE
            fits = len(span.label) * _CHARACTER_IN < room_in and span.lanes * height_in / lanes > _LINE_IN
            if span.label and fits:
                axes.text(
                    (span.start + span.end) / 2,
                    int(span.lane) + (span.lanes - 1) / 2,
                    span.label,
                    ha="center",
                    va="center_baseline",
                    fontsize=8,
                    color=INK if span.faint else _readable_on(chosen[span.group]),
                    clip_on=True,
                    zorder=3,
                )
        _name_lanes(axes, sections, lanes, parted=parted)
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
        titles(axes, title, x_label, lane_label)
        legend_right(axes, [area_handle(group, chosen[group]) for group in chosen if group and group in groups])
    return figure


def _blocks(spans: Sequence[Span], colours: dict[str, str], *, gap: float) -> PolyCollection:
    """Returns a rectangle for every span, `gap` of a lane away from its neighbours'."""
    # One edge of paper between blocks reads well as long as blocks are wider than the edge.
    edge = 0.6 if len(spans) <= _MOST_LABELS else 0.15 if len(spans) <= _MOST_EDGES else 0.0
    corners = []
    for span in spans:
        top, bottom = int(span.lane) - 0.5 + gap, int(span.lane) + span.lanes - 0.5 - gap
        corners.append([(span.start, top), (span.end, top), (span.end, bottom), (span.start, bottom)])
    faces = [(colours[span.group], 0.35 if span.faint else 1.0) for span in spans]
    return PolyCollection(corners, facecolors=faces, edgecolors=PAPER, linewidths=edge, zorder=2)


def _name_lanes(axes: Axes, sections: Sequence[tuple[str, int]], lanes: int, *, parted: bool) -> None:
    """Names sections at their middle, as many as there is room for, and parts them by lines."""
    ticks, names, first = [], [], 0
    every = max(1, math.ceil(len(sections) / 32))
    for number, (name, count) in enumerate(sections):
        if number % every == 0:
            ticks.append(first + count / 2 - 0.5)
            names.append(name)
        if parted and first and len(sections) <= 64:
            axes.axhline(first - 0.5, color=GRID, linewidth=0.8, zorder=1)
        first += count
    axes.set_yticks(ticks, names)
    axes.set_ylim(lanes - 0.4, -0.6)


def _readable_on(colour: str) -> str:
    """Returns white or ink, whichever stands out more; by relative luminance as in WCAG 2."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # A colour of its own, not INK: the label stands on the span, whatever the page's theme.
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.063 else "#1f2329"


def _natural(lane: int | str) -> tuple[tuple[int, int, str], ...]:
    """Sort key of names, by which 10 comes after 9."""
    parts = re.findall(r"\d+|\D+", str(lane))
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)
