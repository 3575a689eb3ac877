"""The style of every figure: one type scale, one palette that colour-blind readers can tell apart, a thin grid."""

import contextlib
import hashlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import matplotlib
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from jaxrun.files.atomic import write_atomic

INK = "#1f2328"
MUTED = "#656d76"
GRID = "#e4e7eb"
NEUTRAL = "#9aa1a9"
PAPER = "#fefefe"

# Okabe & Ito's set (https://jfly.uni-koeln.de/color/), without the yellow and the black that vanish on light and dark.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")

_NAMED = "named-"
_REACH = 8.0

_THEMED = {
    INK: "--plot-ink",
    MUTED: "--plot-muted",
    GRID: "--plot-grid",
    NEUTRAL: "--plot-neutral",
    PAPER: "--plot-paper",
}
_STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Applies the look to what is drawn in the block."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    """Returns an empty figure with one pair of axes; call it within `style`. No global state is kept."""
    figure = Figure(figsize=(width_in, height_in), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save(figure: Figure, path: str | Path) -> None:
    """Writes a PNG on a white ground at 200 dots an inch, whole or not at all.

    Raises:
        UserError: Full disk, no permission.
    """
    buffer = io.BytesIO()
    with style():
        _settle(figure)
        figure.savefig(buffer, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


def as_svg(figure: Figure, label: str = "") -> str:
    """Returns an ``<svg>`` element to put into a page.

    It scales with the page, its text is text, and its ink follows the page's ``--plot-ink``, ``--plot-muted``,
    ``--plot-grid``, ``--plot-neutral`` and ``--plot-paper``. Lines that are `named` say their name under the mouse.
    The same figure gives the same text.

    Args:
        figure: The figure.
        label: What it shows, for readers who cannot see it.
    """
    text = _svg_text(figure, "first pass")
    # Ids must be unique in a page of many figures: the second pass salts them with the content of the first.
    text = _svg_text(figure, hashlib.sha256(text.encode()).hexdigest())
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would reach the whole page
    text = re.sub(rf'<g id="{_NAMED}([^"]*)">', _titled, text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    width_px = figure.get_size_inches()[0] * 100
    look = f"width: 100%; max-width: {width_px:.0f}px; stroke-linejoin: round; stroke-linecap: butt"
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}" style="{look}"', 1)
    for colour, variable in _THEMED.items():
        text = text.replace(f": {colour}", f": var({variable}, {colour})")
    return text.strip()


def _titled(found: re.Match[str]) -> str:
    return f'<g class="named"><title>{escape(unquote(found[1]))}</title>'


def _settle(figure: Figure) -> None:
    """Lays the figure out once and for all; each further pass would shift it by a hair."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def _svg_text(figure: Figure, salt: str) -> str:
    buffer = io.StringIO()
    with style(), matplotlib.rc_context(dict[Any, Any]({"svg.hashsalt": salt})):
        _settle(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def drawable(values: Sequence[float]) -> np.ndarray:
    """Returns the values as float64.

    [n]; beyond 1e100 or not finite is NaN, and below 1e-100 is 0.
    """
    array = np.asarray(values, dtype=float)
    size = np.abs(array)
    return np.where(size < 1e-100, 0.0, np.where(size < 1e100, array, np.nan))


def colours_of(groups: Sequence[str], given: dict[str, str] | None = None) -> dict[str, str]:
    """Returns a colour for each distinct group in order of appearance; colours in `given` win."""
    distinct = list(dict.fromkeys(groups))
    taken = set((given or {}).values())
    free = [colour for colour in PALETTE if colour not in taken] or list(PALETTE)
    unnamed = [group for group in distinct if group not in (given or {})]
    return {**{group: free[index % len(free)] for index, group in enumerate(unnamed)}, **(given or {})}


def compact(value: float) -> str:
    """Returns a number for an axis: ``950``, ``1.5k``, ``20M``, ``0.25``, ``1e-4``."""
    if not math.isfinite(value):
        return ""
    size = abs(value)
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.4g}{suffix}"
    if value and size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


def named(name: str) -> dict[str, Any]:
    """Returns the look of an artist that nobody sees, over a line that is too thin to be met with a mouse.

    Args:
        name: What a page shows when the mouse is there.
    """
    return {"gid": _NAMED + quote(name), "linewidth": _REACH, "alpha": 0.0, "zorder": 7}


def titles(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Sets the title and both axis labels."""
    axes.set_title(title, color=INK)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def line_handle(name: str, colour: str, **look: Any) -> Line2D:
    """Returns a legend's entry for lines."""
    return Line2D([], [], **{"color": colour, "linewidth": 2.2, "label": name, **look})


def area_handle(name: str, colour: str) -> Patch:
    """Returns a legend's entry for areas."""
    return Patch(facecolor=colour, label=name)


def legend_right(axes: Axes, handles: Sequence[Patch | Line2D]) -> None:
    """Puts a legend outside the data, at the right."""
    axes.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        labelcolor=INK,
        handlelength=1.4,
        handleheight=0.9,
        labelspacing=0.6,
    )
