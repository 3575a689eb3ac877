"""Pictures of an ablation of subnetwork training: perplexity against size and speed, and the ladders as they train."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from twist_experiment import read_kept
from twist_table import ARMS_FOLDER, Row, rows_of, speeds_of

from jaxlm.models.perplexity import mean_and_deviation, perplexity
from jaxrun.plots.pictures import Picture
from jaxrun.plots.plot_style import PALETTE, legend_right, new_figure, style, titles
from jaxrun.plots.plots import Series, log_axis, loss_curves

KINDS = {
    "TwIST": ("twist",),
    "beyond TwIST": ("importance", "gradients", "core", "taught", "outer", "all", "ladder", "own"),
    "a training of its own": ("small dense", "dense"),
    "heads and neurons cut": ("random structure", "magnitude structure", "Wanda structure", "ticket before"),
    "weights set to zero": ("magnitude", "Wanda", "SparseGPT"),
}
"""Beginnings of the names of arms, by what the picture calls them; the first that fits counts."""


def pictures_of(out: Path) -> list[Picture]:
    """Returns the pictures of what is known so far."""
    rows, speeds = rows_of(out), speeds_of(out)
    found = []
    if rows:
        points = [(row, row.parameters / 1e6) for row in rows]
        caption = "Every arm at every kappa and number of tokens; means over tickets. Zeros count as parameters."
        found.append(Picture("size", "Size", caption, _scatter(points, "Perplexity and size", "million parameters")))
    timed = [(row, speeds[row.shape]["tokens/s writing"]) for row in rows if row.shape in speeds]
    if timed:
        caption = "The same by how fast a model of the shape writes."
        found.append(Picture("speed", "Speed", caption, _scatter(timed, "Perplexity and speed", "tokens/s writing")))
    for path in sorted((out / ARMS_FOLDER).glob("ladder*.json")):
        told = read_kept(path)
        by_name: dict[str, list[tuple[int, float]]] = {}
        for name, tokens, loss in told["curve"]:
            by_name.setdefault(name, []).append((tokens, perplexity(loss)))
        curves = [Series(*zip(*own, strict=True), name, name, emphasis=True) for name, own in by_name.items()]
        title = f"{told['arm']}, {told['tokens'] / 1e6:,.1f} M tokens"
        labels = {"x_label": "tokens, all workers together", "y_label": "perplexity"}
        figure = loss_curves(curves, title=title, log_y=True, count_groups=False, **labels)
        found.append(Picture(path.stem, title, "Validation perplexity of every kappa as they train.", figure))
    return found


def _kind(row: Row) -> str:
    return next(kind for kind, names in KINDS.items() if row.arm.startswith(names))


def _scatter(points: Sequence[tuple[Row, float]], title: str, x_label: str) -> Figure:
    """Draws the perplexity of arms by kind, those that trained on more tokens larger."""
    with style():
        figure, axes = new_figure(8.4, 4.8)
        for kind, colour in zip(KINDS, PALETTE, strict=False):
            own = [(x, mean_and_deviation(row.losses)[0], 26 * row.times) for row, x in points if _kind(row) == kind]
            if own:
                x, y, sizes = zip(*own, strict=True)
                axes.scatter(x, y, sizes, color=colour, alpha=0.75, linewidths=0, label=kind)
        log_axis(axes, "y")
        titles(axes, title, x_label, "validation perplexity")
        legend_right(axes, axes.get_legend_handles_labels()[0])
    return figure
