"""What an ablation of subnetwork training found, from its files: one row for each arm, its tokens and its kappa."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from twist_experiment import read_kept

from jaxlm.models.perplexity import mean_and_deviation, perplexity
from jaxrun.plots.markdown import table
from twistjax.report.results import FILE_NAME as BASELINES

ARMS_FOLDER = "arms"
_STRUCTURED = "structure", "small dense", "ticket"


class Row(NamedTuple):
    """An arm at one kappa.

    Attributes:
        arm: What was done.
        times: Times the tokens of the config it was trained on.
        kappa: The share of heads and neurons kept, or of weights that are not zero.
        losses: Of the tickets that were drawn, or of the one model.
        parameters: Numbers in its files; zeros count.
        full: Perplexity of the full model it was cut out of, where it is a ticket.
        pace: Tokens a second of its training, where that was noted.
        shape: The kappa of a model of its shape: 1 where nothing was cut but weights were set to zero.
    """

    arm: str
    times: int
    kappa: float
    losses: Sequence[float]
    parameters: int
    full: float | None
    pace: float | None
    shape: float


def rows_of(out: Path) -> list[Row]:
    """Returns all that is known, by tokens and kappa, the best first."""
    found = [*_arms(out), *_baselines(out)]
    return sorted(found, key=lambda one: (one.times, one.kappa, mean_and_deviation(one.losses)[0]))


def _arms(out: Path) -> Iterator[Row]:
    for path in sorted((out / ARMS_FOLDER).glob("*.json")):
        told = read_kept(path)
        for name, one in told["kappas"].items():
            about = one["parameters"], told["full model"], told["training tokens/s"], float(name)
            yield Row(told["arm"], told["times"], float(name), one["losses"], *about)
            if "repaired" in one:
                yield Row(f"{told['arm']}, repaired", told["times"], float(name), one["repaired"], *about)


def _baselines(out: Path) -> Iterator[Row]:
    for path in sorted(out.glob(f"*-x*/{BASELINES}")):
        part, _, times = path.parent.name.rpartition("-x")
        for one in read_kept(path)["results"]:
            note = " (drawn units)" if part == "drawn" else ""
            shape = one["kappa"] if any(word in one["arm"] for word in _STRUCTURED) else 1.0
            about = one["kappa"], one["losses"], one["parameters"], None, None, shape
            yield Row(f"{one['arm']}{note}", int(times), *about)


def speeds_of(out: Path) -> dict[float, dict[str, float]]:
    """Returns tokens a second of reading and writing by the kappa of a shape, a CPU's where they were measured."""
    for path in (out / "speed-cpu.json", *sorted(out.glob("speed-*.json"))):
        if models := read_kept(path).get("models"):
            return {one["kappa"]: one for one in models}
    return {}


def table_of(out: Path) -> str:
    """Returns the table of all arms in Markdown."""
    speeds, cells = speeds_of(out), []
    for row in rows_of(out):
        mean, _ = mean_and_deviation(row.losses)
        values = [perplexity(loss) for loss in row.losses]
        deviation = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        speed = speeds.get(row.shape, {})
        paces = [speed.get("tokens/s reading"), speed.get("tokens/s writing"), row.pace]
        cells.append(
            [
                row.arm,
                str(row.times),
                f"{row.kappa:g}",
                str(len(values)),
                f"{mean:.2f}{deviation}",
                f"{min(values):.2f}",
                "-" if row.full is None else f"{row.full:.2f}",
                f"{row.parameters:,}",
                *("-" if pace is None else f"{pace:,.0f}" for pace in paces),
            ]
        )
    columns = ["arm", "times", "share kept", "of", "perplexity", "best", "full model", "parameters"]
    return table([*columns, "reading, tokens/s", "writing", "training"], cells)
