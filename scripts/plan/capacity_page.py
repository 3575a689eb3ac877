"""Predictions of plan_capacity.py, as Markdown tables and as a figure."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from altojax.estimates.speed_model import OURS, WAYS
from jaxrun.files.atomic import write_atomic
from jaxrun.plots.markdown import table
from jaxrun.plots.plot_style import INK, PALETTE, PAPER, as_svg, compact, line_handle, save, style, titles


def tables(found: dict[str, Any], options: Namespace) -> str:
    """Everything as Markdown."""
    cluster, gb = found["cluster"], 1e9
    shape = f"{options.trials} trials of {options.rows} x {options.length} tokens, rank {options.rank}"
    where = f"{cluster['memory_bytes'] / gb:g} GB a GPU, links {options.link}"
    speed = (
        f"{cluster['mfu']:g} of {cluster['peak'] / 1e12:g} TFLOP/s, half of it with {cluster['half_tokens']:.0f} tokens"
    )
    fits = [
        [
            one["model"],
            f"{one['base_bytes'] / 2e9:.2f}",
            one["gpus"],
            f"{one['base_on_gpu_bytes'] / gb:.1f}",
            f"{one['slot_bytes']['none']['states'] / gb:.2f}",
            " / ".join(f"{slot['kept'] / gb:.1f}" for slot in one["slot_bytes"].values()),
            " / ".join(str(count) for count in one["slots_on_gpu"].values()),
        ]
        for one in found["fits"]
    ]
    packed = [
        [
            one["model"],
            one["form"],
            f"{one['base_bytes'] / gb:.1f}",
            f"{one['dense_bytes'] / gb:.1f}",
            " / ".join(str(count) for count in one["slots_on_gpu"].values()),
        ]
        for one in found["packed"]
    ]
    ours = [
        [one["model"], one["gpus"], *([*(["does not fit"] + ["-"] * 6)] if one["plan"] is None else _row(one["plan"]))]
        for one in found["plans"]
        if one["way"] == OURS
    ]
    checked = [
        [
            f"{one['model']}, {one['slots']} x {one['rows']} x {one['length']}",
            *_against(one, "tokens_per_s", ",.0f"),
            *_against(one, "step_gib", ".1f"),
        ]
        for one in found["checks"]
    ]
    pairs = [
        [one["model"], one["way"], one["one_ms"], one["two_ms"], *_against(one, "times", ".3f")]
        for one in found["pairs"]
    ]
    together = {(one["model"], one["gpus"], one["way"]): one["plan"] for one in found["plans"]}
    alone = {(one["model"], one["gpus"], one["way"]): one for one in found["groups"]}
    speeds = {key: None if plan is None else plan["tokens_per_s"] for key, plan in together.items()}
    split = {key: one["tokens_per_s"] for key, one in alone.items()}
    sizes = {key: one["group"] for key, one in alone.items()}
    parts = [
        f"Predicted, not measured: {shape}; {where}; {speed}.",
        "### Memory",
        table(
            ["model", "parameters, G", "GPUs", "base on a GPU, GB", "adapter and moments, GB",
             "kept for a slot's backward pass, GB: none / dots / full", "slots that fit a GPU"],
            fits,
        ),
        "### A packed base, whole on one GPU",
        table(["model", "form", "base, GB", "two layers dense, GB", "slots that fit: none / dots / full"], packed),
        "### Adapter parallelism",
        table(
            ["model", "GPUs", "adapters at once", "remat", "tokens of the busiest GPU", "step, ms", "of it computing",
             "received by a GPU, GB", "tokens/s"],
            ours,
        ),
        "### All GPUs as one group, tokens/s",
        _speed_table(speeds),
        *_verdicts(speeds),
        "### In groups of the fastest size, tokens/s (GPUs of a group)",
        _speed_table(split, sizes),
        *_verdicts(split),
        "### Against measured steps on one H100",
        table(
            ["step", "tokens/s", "predicted", "off by", "step's memory, GiB", "predicted", "off by"],
            checked,
        ),
        "### Against measured steps on two H200s",
        table(
            ["model", "on two", "one GPU, ms", "two, ms", "times as long", "predicted", "off by"],
            pairs,
        ),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _row(plan: dict[str, Any]) -> list[str]:
    return [
        str(plan["adapters"]),
        plan["remat"],
        f"{plan['tokens'] // plan['adapters'] * plan['busiest']:,}",
        f"{plan['step_s'] * 1e3:,.0f}",
        f"{plan['compute_s'] / plan['step_s']:.1%}",
        f"{plan['moved'] / 1e9:.1f}",
        f"{plan['tokens_per_s']:,.0f}",
    ]


def _against(check: dict[str, Any], key: str, style_of: str) -> list[str]:
    was, said = check["measured"][key], check["predicted"][key]
    return [format(was, style_of), format(said, style_of), f"{said / was - 1:+.1%}"]


def _speed_table(speeds: dict[Any, float | None], sizes: dict[Any, int] | None = None) -> str:
    """A row for each model and number of GPUs, a column for each way, the fastest bold."""
    rows = []
    for model, gpus in dict.fromkeys(key[:2] for key in speeds):
        values = {way: round(speeds[model, gpus, way] or 0) for way in WAYS}
        cells = []
        for way, value in values.items():
            text = f"{value:,}" + ("" if sizes is None else f" ({sizes[model, gpus, way]})") if value else "-"
            cells.append(f"**{text}**" if value and value == max(values.values()) else text)
        rows.append([model, gpus, *cells])
    return table(["model", "GPUs", *WAYS], rows)


def _verdicts(speeds: dict[Any, float | None]) -> list[str]:
    """A sentence for each rival: where it is faster than adapter parallelism."""
    lines = []
    for way in WAYS:
        if way == OURS:
            continue
        cases = [key[:2] for key in speeds if key[2] == way]
        faster = []
        for case in cases:
            ours, theirs = (round(speeds[*case, one] or 0) for one in (OURS, way))
            if theirs > ours:
                gain = f"by {theirs / ours - 1:.1%}" if ours else "where adapter parallelism does not fit"
                faster.append(f"{case[0]} on {case[1]} ({gain})")
        lines.append(f"- {way}: " + (f"faster for {', '.join(faster)}" if faster else "nowhere faster"))
    return ["Faster than adapter parallelism:", "\n".join(lines)]


def draw(found: dict[str, Any]) -> Figure:
    """Tokens a second of a GPU against GPUs, a panel for each model."""
    models = list(dict.fromkeys(one["model"] for one in found["plans"]))
    kinds = {way: way.partition(",")[0] for way in WAYS}
    colours = dict(zip(dict.fromkeys(kinds.values()), PALETTE, strict=False))
    looks: dict[str, dict[str, Any]] = {
        way: {
            "linestyle": (0, (4, 3)) if way.endswith("one adapter") else "-",
            "linewidth": 2.6 if way == OURS else 1.6,
        }
        for way in WAYS
    }
    with style():
        figure = Figure(figsize=(1.6 + 3.2 * len(models), 3.9), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        for at, model in enumerate(models):
            axes = figure.add_subplot(1, len(models), at + 1)
            for way in reversed(WAYS):
                points = [
                    (one["gpus"], one["plan"]["tokens_per_s"] / one["gpus"])
                    for one in found["plans"]
                    if (one["model"], one["way"]) == (model, way) and one["plan"] is not None
                ]
                x, y = [point[0] for point in points], [point[1] for point in points]
                axes.plot(x, y, color=colours[kinds[way]], marker="o", markersize=3.5, **looks[way])
            gpus = sorted({one["gpus"] for one in found["plans"]})
            axes.set_xscale("log", base=2)
            axes.set_xticks(gpus, [str(count) for count in gpus])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
            titles(axes, model, "GPUs", "tokens/s of a GPU, predicted" if at == 0 else "")
        handles = [line_handle(way, colours[kinds[way]], **looks[way]) for way in WAYS]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, labelcolor=INK)
    return figure


def write_plot(figure: Figure, path: Path) -> None:
    """Writes the figure as its name says.

    Raises:
        UserError: Full disk, no permission, no such folder.
    """
    if path.suffix == ".png":
        save(figure, path)
        return
    text = as_svg(figure, "Predicted tokens per second of a GPU against the number of GPUs")
    ground = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    at = text.index(">") + 1
    write_atomic(path, f"{text[:at]}\n{ground}{text[at:]}\n")
