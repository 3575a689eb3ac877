"""Timelines: spans on lanes."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jaxrun.plots.plot_style import PAPER, area_handle, colours_of, compact, legend_right, new_figure, style, titles

_LANE_IN = 0.3
_MOST_LANES_LABELLED = 64
_CHARACTER_IN = 0.082


@dataclass(frozen=True)
class Span:
    """Something that held a lane from `start` to `end`.

    Attributes:
        lane: The row, e.g. a slot's number.
        start: In the unit of the x axis.
        end: The same; not before `start`.
        label: Written inside if it fits.
        group: Decides the colour.
    """

    lane: int | str
    start: float
    end: float
    label: str = ""
    group: str = ""


def timeline(
    spans: Sequence[Span],
    *,
    title: str = "",
    x_label: str = "time (s)",
    lane_label: str = "slot",
    colours: dict[str, str] | None = None,
) -> Figure:
    """Draws spans on lanes, coloured by group.

    Args:
        spans: The spans; one that is not finite is left out.
        title: Above the figure.
        x_label: With its unit.
        lane_label: What a lane is.
        colours: Colours for certain groups.
    """
    spans = [span for span in spans if math.isfinite(span.start) and math.isfinite(span.end)]
    lanes = sorted({span.lane for span in spans}, key=natural)
    row = {lane: index for index, lane in enumerate(lanes)}
    chosen = colours_of([span.group for span in spans], colours)
    with style():
        height = 1.3 + min(max(len(lanes), 2) * _LANE_IN, 12.0)
        figure, axes = new_figure(8.4, height)
        low = min((span.start for span in spans), default=0.0)
        high = max((span.end for span in spans), default=1.0)
        length = (high - low) or 1.0
        for span in spans:
            width = span.end - span.start
            axes.barh(
                row[span.lane],
                width,
                left=span.start,
                height=0.78,
                color=chosen[span.group],
                edgecolor=PAPER,
                linewidth=0.7,
                zorder=2,
            )
            room_in = width / length * 6.0
            if span.label and len(span.label) * _CHARACTER_IN < room_in and len(lanes) <= _MOST_LANES_LABELLED:
                axes.text(
                    span.start + width / 2,
                    row[span.lane],
                    span.label,
                    ha="center",
                    va="center_baseline",
                    fontsize=8,
                    color=readable_on(chosen[span.group]),
                    clip_on=True,
                    zorder=3,
                )
        axes.set_xlim(low - 0.005 * length, high + 0.005 * length)
        axes.set_ylim(max(len(lanes), 1) - 0.4, -0.6)
        every = max(1, math.ceil(len(lanes) / 32))
        axes.set_yticks(range(0, len(lanes), every), [str(lane) for lane in lanes[::every]])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.xaxis.set_major_locator(MaxNLocator(8))
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        titles(axes, title, x_label, lane_label)
        groups = [group for group in dict.fromkeys(span.group for span in spans) if group]
        legend_right(axes, [area_handle(group, chosen[group]) for group in groups])
    return figure


def readable_on(colour: str) -> str:
    """Returns white or ink, whichever stands out more; by relative luminance as in WCAG 2."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # A colour of its own, not INK: the label stands on the span, whatever the page's theme.
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.063 else "#1f2329"


def natural(lane: int | str) -> tuple[tuple[int, int, str], ...]:
    """What sorts names so that 10 comes after 9."""
    parts = re.findall(r"\d+|\D+", str(lane))
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)
