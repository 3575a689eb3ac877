"""The figures of a report: curves, parallel coordinates, a timeline, bars. They know numbers and names, no tuner.

Each function returns a matplotlib `Figure` made without any global state; `save` writes it as PNG and `as_svg`
turns it into a piece of a page.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from jaxrun.plots.parallel_coordinates import Column, parallel_coordinates
from jaxrun.plots.plot_style import (
    GRID,
    INK,
    MUTED,
    NEUTRAL,
    PALETTE,
    area_handle,
    as_svg,
    colours_of,
    compact,
    drawable,
    legend_right,
    line_handle,
    named,
    new_figure,
    save,
    style,
    titles,
)
from jaxrun.plots.timeline import Span, timeline

__all__ = [
    "PALETTE",
    "Column",
    "Series",
    "Span",
    "as_svg",
    "bars",
    "loss_curves",
    "parallel_coordinates",
    "save",
    "timeline",
]

_CROWD = 40
# A curve whose peak is this many times further from the lowest loss than the median peak may leave the picture.
_BLOWN_UP = 2.0
_DASHED: dict[str, Any] = {"linewidth": 1.1, "linestyle": (0, (4, 3))}


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        x: Positions, [n].
        y: Values, [n]; what is not finite is a gap, and a curve that ends so ends in a cross.
        group: Decides the colour, e.g. how the trial ended.
        label: Shown in the legend if `emphasis`.
        emphasis: Drawn thick, on top.
        name: What a page shows when the mouse is over the curve.
    """

    x: Sequence[float]
    y: Sequence[float]
    group: str = ""
    label: str = ""
    emphasis: bool = False
    name: str = ""


def loss_curves(
    series: Sequence[Series],
    *,
    title: str = "",
    x_label: str = "training samples",
    y_label: str = "loss (nats per token)",
    log_y: bool = False,
    colours: dict[str, str] | None = None,
    reference: tuple[str, float] | None = None,
    count_groups: bool = True,
) -> Figure:
    """Draws curves, coloured by group so that 4 or 400 of them can be read.

    Args:
        series: The curves.
        title: Above the figure.
        x_label: With its unit.
        y_label: With its unit.
        log_y: Logarithmic y; values that are not positive are left out.
        colours: Colours for certain groups.
        reference: A name and a value, drawn as a dashed line where it can be, e.g. the base model's loss.
        count_groups: Whether the legend lists groups and how many curves each has.
    """
    chosen = colours_of([curve.group for curve in series], colours)
    reference = _drawn(reference, log_y)
    with style():
        figure, axes = new_figure(8.4, 4.4)
        lines = [(curve, *_clean(curve, log_y)) for curve in series]
        _curves(axes, lines, chosen)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.margins(x=0.02)
        if log_y and any(np.isfinite(y).any() for _, _, y in lines):  # of nothing there is no logarithm
            log_axis(axes, "y")
        else:
            _limit_y(axes, [y for _, _, y in lines], reference)
        if reference is not None:
            axes.axhline(reference[1], color=MUTED, zorder=1.5, **_DASHED)
            axes.annotate(
                reference[0],
                (1.0, reference[1]),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8.5,
                color=MUTED,
            )
        titles(axes, title, x_label, y_label)
        counts = Counter(curve.group for curve in series if count_groups)
        legend_right(
            axes,
            [
                *(_emphasised(curve, chosen) for curve in series if curve.emphasis and curve.label),
                *(line_handle(f"{group} ({counts[group]})", chosen[group]) for group in counts if group),
            ],
        )
        if not any(np.isfinite(y).any() for _, _, y in lines):
            _nothing(axes)
    return figure


def bars(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    title: str = "",
    value_label: str = "",
    log: bool = False,
    stacked: bool = False,
    colours: dict[str, str] | None = None,
    reference: tuple[str, float] | None = None,
) -> Figure:
    """Draws horizontal bars with their values written beside them.

    Args:
        labels: One per row, top to bottom, [n].
        series: Values by name, each [n]; several make grouped bars. What is not finite, or beyond 1e100, has a word for
            a bar.
        title: Above the figure.
        value_label: What the bars measure, with its unit.
        log: Logarithmic values.
        stacked: Put the series of a row one after the other, with their sum beside them, instead of below one another.
        colours: Colours for certain series.
        reference: A name and a value, drawn as a dashed line where it can be.
    """
    chosen = colours_of(list(series), colours)
    reference = _drawn(reference, log)
    rows, groups = len(labels), max(1, 1 if stacked else len(series))
    thickness = 0.76 / groups
    with style():
        figure, axes = new_figure(8.4, 1.2 + max(1, rows) * (0.16 + 0.2 * groups))
        ends = np.zeros(rows)
        for index, (name, values) in enumerate(series.items()):
            heights = drawable(values)
            at = np.arange(rows) + (0.0 if stacked else (index - (groups - 1) / 2) * thickness)
            shown = np.where(np.isfinite(heights), heights, 0.0)
            axes.barh(at, shown, left=ends if stacked else None, height=thickness * 0.9, color=chosen[name], zorder=2)
            ends = ends + shown
            if stacked and index < len(series) - 1:
                continue
            for position, height, given in zip(at, ends if stacked else heights, values, strict=True):
                known = math.isfinite(height)
                has_bar = known and (height > 0 or not log)
                axes.annotate(
                    compact(height) if known else _word(given),
                    (height if has_bar else 0.0, position),
                    xycoords="data" if has_bar or not log else ("axes fraction", "data"),
                    xytext=(-4 if has_bar and height < 0 else 4, 0),
                    textcoords="offset points",
                    va="center",
                    ha="right" if has_bar and height < 0 else "left",
                    fontsize=8.5,
                    color=INK if known else MUTED,
                )
        axes.set_yticks(np.arange(rows), labels, color=INK)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.spines["bottom"].set_visible(False)
        axes.margins(x=0.12, y=0.02)
        if log:
            log_axis(axes, "x")
        else:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        titles(axes, title, value_label, "")
        entries: list[Line2D | Patch] = [area_handle(name, chosen[name]) for name in series] if len(series) > 1 else []
        if reference is not None:
            axes.axvline(reference[1], color=MUTED, zorder=3, **_DASHED)
            entries.append(line_handle(reference[0], MUTED, **_DASHED))
        legend_right(axes, entries)
        if not rows:
            _nothing(axes)
    return figure


def _word(value: float) -> str:
    """Returns what stands for a bar that is not drawn."""
    return "none" if math.isnan(value) else "too large" if value > 0 else "too low"


def _clean(curve: Series, log_y: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = drawable(curve.x), drawable(curve.y)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"curve '{curve.label}': x has shape {x.shape} and y {y.shape}, expected two equal lengths")
    with np.errstate(invalid="ignore"):
        x, y = x[np.isfinite(x)], y[np.isfinite(x)]
        return x, np.where(np.isfinite(y) & ((y > 0) | (not log_y)), y, np.nan)


def _curves(axes: Axes, lines: Sequence[tuple[Series, np.ndarray, np.ndarray]], colours: Mapping[str, str]) -> None:
    crowd = len(lines) > _CROWD
    alpha, width = (max(0.25, 12 / len(lines)), 0.9) if crowd else (0.85, 1.4)
    quiet = [(curve, x, y) for curve, x, y in lines if not curve.emphasis]
    axes.add_collection(
        LineCollection(
            [np.column_stack([x, y]) for _, x, y in quiet],
            colors=[colours[curve.group] for curve, _, _ in quiet],
            linewidths=width,
            alpha=alpha,
            zorder=2,
        )
    )
    for curve, x, y in lines:
        finite = np.flatnonzero(np.isfinite(y))
        if not len(finite):
            continue
        colour = colours[curve.group]
        if curve.name:
            axes.plot(x, y, color=colour, **named(curve.name))
        if curve.emphasis:
            axes.plot(x, y, color=colour, linewidth=2.6, solid_capstyle="round", zorder=4)
        last = finite[-1]
        broken = last < len(y) - 1
        size = 46 if curve.emphasis else 9 if crowd else 20
        axes.scatter(
            [x[last]],
            [y[last]],
            s=size * (1.6 if broken else 1.0),
            marker="x" if broken else "o",
            color=colour,
            linewidths=1.2 if broken else 0.0,
            alpha=1.0 if curve.emphasis else min(1.0, alpha + 0.2),
            zorder=5 if curve.emphasis else 3,
        )
    axes.autoscale_view()


def _drawn(reference: tuple[str, float] | None, log: bool) -> tuple[str, float] | None:
    """A reference, or None where its value has no place on the axis."""
    if reference is None:
        return None
    (value,) = drawable([reference[1]])
    return reference if math.isfinite(value) and (value > 0 or not log) else None


def _emphasised(curve: Series, colours: Mapping[str, str]) -> Line2D:
    return line_handle(curve.label, colours[curve.group], linewidth=3.2, marker="o", markersize=7)


def _limit_y(axes: Axes, values: Sequence[np.ndarray], reference: tuple[str, float] | None) -> None:
    """Keeps a few curves that blow up from flattening all others, and says how many leave the picture."""
    finite = [y[np.isfinite(y)] for y in values if np.isfinite(y).any()]
    if not finite:
        return
    known = [] if reference is None else [reference[1]]
    peaks = np.array([y.max() for y in finite])
    low, high = min(float(y.min()) for y in finite), float(peaks.max())
    usual = low + _BLOWN_UP * (float(np.median(peaks)) - low)
    top = max([high, *known])
    if high > usual > low:
        top = max([float(peaks[peaks <= usual].max()), *known])
        above = int((peaks > top).sum())
        axes.annotate(
            f"↑ {above} curve{'' if above == 1 else 's'} above {top:.3g}" if above else "",
            (1.0, 1.0),
            xycoords="axes fraction",
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color=MUTED,
        )
    bottom = min([low, *known])
    margin = 0.05 * (top - bottom) or 0.05 * max(abs(top), 1.0)
    axes.set_ylim(bottom - margin, top + margin)


def log_axis(axes: Axes, which: str) -> None:
    """Makes the ``x`` or ``y`` axis, on which everything is drawn, logarithmic, with plain numbers along it."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    narrow = low > 0 and high / low < 300
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axis.set_minor_formatter(NullFormatter())


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "nothing to show yet", transform=axes.transAxes, ha="center", va="center", color=NEUTRAL)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_color(GRID)
