"""Parallel coordinates: one line per configuration through its values, coloured by how well it did."""

import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from harness.plot_style import INK, MUTED, NEUTRAL, PAPER, compact, drawable, new_figure, style

_LOG_FROM = 20.0
_FEW = 9
# Good, middling, bad: told apart by hue with any eyes, by lightness in print, and on light and dark pages.
_GOOD_TO_BAD = LinearSegmentedColormap.from_list("good_to_bad", ["#0072B2", "#8fa3b0", "#E69F00"])


@dataclass(frozen=True)
class Column:
    """One vertical axis.

    Attributes:
        name: Written below it.
        log: Logarithmic; None decides by the values (positive, spanning a factor of 20 or more).
    """

    name: str
    log: bool | None = None


def parallel_coordinates(
    columns: Sequence[Column | str],
    rows: Sequence[Sequence[Any]],
    values: Sequence[float],
    *,
    title: str = "",
    value_label: str = "validation loss",
    lower_is_better: bool = True,
) -> Figure:
    """Draws one line per row across an axis per column, ending at its value on the last axis.

    Args:
        columns: The axes, left to right, [c].
        rows: Each [c]; a column whose entries are all numbers is numeric, any other is categorical.
        values: One per row; what is not finite is drawn in grey and ends nowhere.
        title: Above the figure.
        value_label: What the values are, with the unit.
        lower_is_better: Which end of the scale is good; the best row is drawn thick.
    """
    axes_of = [column if isinstance(column, Column) else Column(column) for column in columns]
    scales = [_Scale(column, [row[index] for row in rows]) for index, column in enumerate(axes_of)]
    scores = drawable(values)
    finite = scores[np.isfinite(scores)]
    result = _Scale(Column(value_label, log=False), finite.tolist())
    best = (
        int(np.nanargmin(np.where(np.isfinite(scores), scores if lower_is_better else -scores, np.nan)))
        if finite.size
        else -1
    )
    colours = _GOOD_TO_BAD if lower_is_better else _GOOD_TO_BAD.reversed()
    with style():
        figure, axes = new_figure(max(6.0, 1.35 * (len(scales) + 1) + 1.2), 4.4)
        axes.grid(visible=False)
        axes.set_axis_off()
        alpha = float(np.clip(14 / max(len(rows), 1), 0.3, 0.9))
        order = sorted(range(len(rows)), key=lambda index: _draw_order(float(scores[index]), lower_is_better))
        for index in order:
            places = [scale.place(rows[index][at]) for at, scale in enumerate(scales)]
            known = math.isfinite(scores[index])
            if known:
                places.append(result.place(scores[index]))
            is_best = index == best
            axes.add_patch(
                PathPatch(
                    _smooth(places),
                    facecolor="none",
                    edgecolor=INK if is_best else colours(places[-1]) if known else NEUTRAL,
                    linewidth=3.0 if is_best else 1.3,
                    linestyle="solid" if known else (0, (2, 2)),
                    alpha=1.0 if is_best else alpha,
                    capstyle="round",
                    zorder=4 if is_best else 2,
                )
            )
        for at, scale in enumerate(scales):
            _axis(axes, at, scale)
        _value_axis(axes, len(scales), result, colours)
        if best >= 0:
            axes.annotate(
                f"best {compact(scores[best])}",
                (len(scales) + 0.11, result.place(scores[best])),
                xytext=(30, 0),
                textcoords="offset points",
                va="center",
                color=INK,
                fontweight="bold",
                fontsize=9,
                zorder=6,
            )
        axes.set_xlim(-0.45, len(scales) + 0.85)
        axes.set_ylim(-0.16, 1.06)
        axes.set_title(title, color=INK)
    return figure


class _Scale:
    """Places one column's entries between 0 and 1, and knows its ticks."""

    def __init__(self, column: Column, entries: Sequence[Any]) -> None:
        self.name = column.name
        numbers = drawable([entry for entry in entries if _is_number(entry)]).tolist()
        self.numeric = bool(numbers) and all(_is_number(entry) or entry is None for entry in entries)
        self.ticks: list[tuple[float, str]]
        if not self.numeric:
            names = list(dict.fromkeys(_shown(entry) for entry in entries))
            self._categories = {name: (index + 0.5) / len(names) for index, name in enumerate(names)}
            self.ticks = [(place, _wrapped(name)) for name, place in self._categories.items()]
            return
        low, high = min(numbers), max(numbers)
        self.log = column.log if column.log is not None else low > 0 and high / low >= _LOG_FROM
        self.log = self.log and low > 0
        self._low, self._high = self._scaled(low), self._scaled(high)
        distinct = sorted(set(numbers))
        marks = distinct if len(distinct) <= _FEW else self._round_marks()
        self.ticks = _apart([(self.place(mark), compact(mark)) for mark in marks])

    def place(self, entry: Any) -> float:
        if not self.numeric:
            return self._categories[_shown(entry)]
        if entry is None:
            return -0.04
        if self._high == self._low:
            return 0.5
        return (self._scaled(float(drawable([entry])[0])) - self._low) / (self._high - self._low)

    def _scaled(self, number: float) -> float:
        return math.log10(number) if self.log else number

    def _round_marks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            marks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
            inside = [mark for mark in marks if self._low <= math.log10(mark) <= self._high]
            whole = [mark for mark in inside if math.log10(mark).is_integer()]
            return whole if len(whole) > 2 else inside
        step = 10.0 ** math.floor(math.log10((self._high - self._low) / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if (self._high - self._low) / (step * factor) <= 6)
        first = math.ceil(self._low / step)
        return [index * step for index in range(first, math.floor(self._high / step) + 1)]


def _axis(axes: Axes, at: int, scale: _Scale) -> None:
    axes.plot([at, at], [0, 1], color=MUTED, linewidth=1.0, zorder=3, solid_capstyle="butt")
    _name(axes, at, scale.name + (" (log)" if scale.numeric and scale.log else ""))
    for place, text in scale.ticks:
        axes.plot([at - 0.02, at + 0.02], [place, place], color=MUTED, linewidth=1.0, zorder=3)
        _tick(axes, at - 0.05, place, text, "right")


def _value_axis(axes: Axes, at: int, scale: _Scale, colours: Colormap) -> None:
    if not scale.numeric:
        _name(axes, at, scale.name)
        return
    strip = np.linspace(0, 1, 256)[:, None]
    axes.imshow(
        colours(strip), extent=(at, at + 0.09, 0, 1), aspect="auto", origin="lower", zorder=3, interpolation="bilinear"
    )
    _name(axes, at, scale.name)
    for place, text in scale.ticks if len(scale.ticks) > 1 else [(0.5, "")]:
        _tick(axes, at + 0.13, place, text, "left")


def _name(axes: Axes, at: float, name: str) -> None:
    axes.text(at, -0.075, name.replace(" (", "\n("), ha="center", va="top", fontsize=9, color=INK)


def _tick(axes: Axes, x: float, y: float, text: str, align: str) -> None:
    ground = {"boxstyle": "round,pad=0.15,rounding_size=0.3", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.85}
    axes.text(x, y, text, ha=align, va="center", fontsize=8.5, color=MUTED, zorder=5, bbox=ground)


def _smooth(places: Sequence[float]) -> Path:
    """Returns a curve that leaves and reaches every axis level, so that lines can be followed across it."""
    points: list[tuple[float, float]] = [(0.0, places[0])]
    codes = [Path.MOVETO]
    for at, (here, there) in enumerate(itertools.pairwise(places)):
        points += [(at + 0.4, here), (at + 0.6, there), (at + 1.0, there)]
        codes += [Path.CURVE4] * 3
    return Path(points, codes)


def _wrapped(name: str) -> str:
    """Breaks a long name after its commas, so that it does not reach the axis to the left."""
    return textwrap.fill(name.replace(", ", ",").replace(",", ", "), 15, break_long_words=False)


def _apart(ticks: list[tuple[float, str]], gap: float = 0.05) -> list[tuple[float, str]]:
    """Drops ticks that would be written over one another; the ends stay."""
    if len(ticks) < 3:
        return ticks
    kept = [ticks[0]]
    for tick in ticks[1:-1]:
        if tick[0] - kept[-1][0] >= gap and ticks[-1][0] - tick[0] >= gap:
            kept.append(tick)
    return [*kept, ticks[-1]]


def _draw_order(score: float, lower_is_better: bool) -> tuple[bool, float]:
    """Unknown first, then from worst to best, so that the good ones lie on top."""
    if not math.isfinite(score):
        return False, 0.0
    return True, -score if lower_is_better else score


def _is_number(entry: Any) -> bool:
    if not isinstance(entry, int | float | np.number) or isinstance(entry, bool):
        return False
    return math.isfinite(drawable([float(entry)])[0])


def _shown(entry: Any) -> str:
    if isinstance(entry, list | tuple):
        return ", ".join(str(part) for part in entry)
    return {True: "yes", False: "no", None: "none"}.get(entry, str(entry)) if not _is_number(entry) else compact(entry)
