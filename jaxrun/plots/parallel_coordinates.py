"""Parallel coordinates: one line per configuration through its values, coloured by how well it did."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from jaxrun.plots.plot_style import (
    INK,
    MUTED,
    NEUTRAL,
    PAPER,
    colours_of,
    compact,
    drawable,
    line_handle,
    named,
    new_figure,
    style,
)

_LOG_FROM = 20.0
_FEW = 9
_WIDEST_IN, _MARGINS_IN = 11.2, 1.4
"""Inches: as wide as a page shows without making it smaller; what stands left and right of the axes."""
_CHARACTER_IN = 0.075
_RIGHT_OF_STRIP, _TICK_GAP = 0.13, 0.05
"""Offset of the last axis's texts; least distance of two legible ticks, as a share of the axis."""
_CROSS: dict[str, Any] = {"marker": "X", "s": 34, "linewidths": 0.6, "edgecolors": PAPER, "zorder": 5}
# Good, middling, bad: distinct in hue to any eyes, in lightness in print, and on light and dark pages.
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
    ended: Sequence[str] = (),
    names: Sequence[str] = (),
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draws one line per row across an axis per column, ending at its value on the last axis.

    Args:
        columns: The axes, left to right, [c].
        rows: Each [c]; a column whose entries are all numbers is numeric, any other is categorical.
        values: One per row, the lowest the best; what is not finite is drawn in grey and ends nowhere.
        title: Above the figure.
        value_label: What the values are, with the unit.
        ended: One per row, if any: what ended it early, '' for nothing. Such a row is dashed and ends in a cross.
        names: One per row, if any: what a page shows when the mouse is over its line.
        colours: Colours of the crosses, by what `ended` says.
    """
    axes_of = [column if isinstance(column, Column) else Column(column) for column in columns]
    scales = [_Scale(column, [row[index] for row in rows]) for index, column in enumerate(axes_of)]
    scores = drawable(values)
    finite = scores[np.isfinite(scores)]
    result = _Scale(Column(value_label, log=False), finite.tolist())
    best = int(np.nanargmin(scores)) if finite.size else -1
    ended = list(ended) or [""] * len(rows)
    crosses = colours_of([why for why in ended if why], dict(colours or {}))
    with style():
        width_in = min(max(6.0, 1.35 * (len(scales) + 1) + 1.2), _WIDEST_IN)
        room_in = (width_in - _MARGINS_IN) / (len(scales) + 1)
        figure, axes = new_figure(width_in, 4.4 if room_in > 1.2 else 5.0)
        axes.grid(visible=False)
        axes.set_axis_off()
        alpha = float(np.clip(14 / max(len(rows), 1), 0.3, 0.9))
        order = sorted(range(len(rows)), key=lambda index: _draw_order(float(scores[index])))
        for index in order:
            places = [scale.place(rows[index][at]) for at, scale in enumerate(scales)]
            known = math.isfinite(scores[index])
            if known:
                places.append(result.place(scores[index]))
            is_best = index == best
            line = _smooth(places)
            axes.add_patch(
                PathPatch(
                    line,
                    facecolor="none",
                    edgecolor=INK if is_best else _GOOD_TO_BAD(places[-1]) if known else NEUTRAL,
                    linewidth=3.0 if is_best else 1.3,
                    linestyle=(0, (2, 2)) if not known else (0, (4, 2.5)) if ended[index] else "solid",
                    alpha=1.0 if is_best else 0.6 * alpha if ended[index] else alpha,
                    capstyle="butt" if ended[index] else "round",
                    zorder=4 if is_best else 2,
                )
            )
            if ended[index]:
                axes.scatter(len(places) - 1, places[-1], color=crosses[ended[index]], **_CROSS)
            if names:
                axes.add_patch(PathPatch(line, facecolor="none", **named(names[index])))
        for at, scale in enumerate(scales):
            _axis(axes, at, scale, room_in)
        taken = result.place(scores[best]) if best >= 0 else None
        _value_axis(axes, len(scales), result, room_in, taken)
        if taken is not None:
            axes.text(
                len(scales) + _RIGHT_OF_STRIP,
                taken,
                f"best {compact(scores[best])}",
                va="center",
                color=INK,
                fontweight="bold",
                fontsize=9,
                zorder=6,
            )
        axes.set_xlim(-0.45, len(scales) + 0.85)
        axes.set_ylim(-0.16, 1.06)
        axes.set_title(title, color=INK)
        _legend(axes, ended, crosses)
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
            self.ticks = [(place, name) for name, place in self._categories.items()]
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


def _legend(axes: Axes, ended: Sequence[str], crosses: Mapping[str, str]) -> None:
    """Says below the axes what dashes and crosses mean, where there are any."""
    counts = Counter(why for why in ended if why)
    if not counts:
        return
    solid = line_handle(f"not ended early ({len(ended) - counts.total()})", NEUTRAL)
    dashed = [
        line_handle(
            f"{why} ({counts[why]})", NEUTRAL, linestyle=(0, (2, 1.2)), marker="X", markersize=6, mec=colour, mfc=colour
        )
        for why, colour in crosses.items()
        if counts[why]
    ]
    axes.figure.legend(handles=[solid, *dashed], loc="outside lower center", ncols=3, labelcolor=INK, handlelength=2.6)


def _axis(axes: Axes, at: int, scale: _Scale, room_in: float) -> None:
    axes.plot([at, at], [0, 1], color=MUTED, linewidth=1.0, zorder=3, solid_capstyle="butt")
    _name(axes, at, scale.name + (" (log)" if scale.numeric and scale.log else ""), room_in)
    for place, text in scale.ticks:
        axes.plot([at - 0.02, at + 0.02], [place, place], color=MUTED, linewidth=1.0, zorder=3)
        _tick(axes, at - 0.05, place, _wrapped(text, room_in - 0.15), "right")


def _value_axis(axes: Axes, at: int, scale: _Scale, room_in: float, taken: float | None) -> None:
    """Draws the axis of values; no tick is written where ``taken`` is, at which the best is named."""
    if not scale.numeric:
        _name(axes, at, scale.name, room_in)
        return
    strip = np.linspace(0, 1, 256)[:, None]
    axes.imshow(
        _GOOD_TO_BAD(strip),
        extent=(at, at + 0.09, 0, 1),
        aspect="auto",
        origin="lower",
        zorder=3,
        interpolation="bilinear",
    )
    _name(axes, at, scale.name, room_in)
    for place, text in scale.ticks if len(scale.ticks) > 1 else [(0.5, "")]:
        if taken is None or abs(place - taken) >= _TICK_GAP:
            _tick(axes, at + _RIGHT_OF_STRIP, place, text, "left")


def _name(axes: Axes, at: float, name: str, room_in: float) -> None:
    axes.text(at, -0.075, _wrapped(name, room_in).replace(" (", "\n("), ha="center", va="top", fontsize=9, color=INK)


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


def _wrapped(name: str, room_in: float) -> str:
    """Breaks a long name after commas and spaces, a long word after underscores, so that it stays off the next axis."""
    most, lines = max(8, int(room_in / _CHARACTER_IN)), [""]
    words = re.findall(r"[^, ]+[, ]*|[, ]+", name.replace(", ", ",").replace(",", ", "))
    for piece in (part for word in words for part in ([word] if len(word) <= most else re.findall("[^_]+_*|_+", word))):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > most:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _apart(ticks: list[tuple[float, str]], gap: float = _TICK_GAP) -> list[tuple[float, str]]:
    """Drops ticks that would be written over one another; the ends stay."""
    if len(ticks) < 3:
        return ticks
    kept = [ticks[0]]
    for tick in ticks[1:-1]:
        if tick[0] - kept[-1][0] >= gap and ticks[-1][0] - tick[0] >= gap:
            kept.append(tick)
    return [*kept, ticks[-1]]


def _draw_order(score: float) -> tuple[bool, float]:
    """Unknown first, then from worst to best, so that the good ones lie on top."""
    return (True, -score) if math.isfinite(score) else (False, 0.0)


def _is_number(entry: Any) -> bool:
    if not isinstance(entry, int | float | np.number) or isinstance(entry, bool):
        return False
    return math.isfinite(drawable([float(entry)])[0])


def _shown(entry: Any) -> str:
    if isinstance(entry, list | tuple):
        return ", ".join(str(part) for part in entry)
    return {True: "yes", False: "no", None: "none"}.get(entry, str(entry)) if not _is_number(entry) else compact(entry)
