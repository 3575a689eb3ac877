"""The seconds of all arms of reproduce_alto.py, as a file and as the picture of the headline.

The picture can be drawn once more from the file, as docs/ has both:

    python scripts/reproduce/grid_times.py docs/figures/alto-times.csv docs/figures/alto-times.png
"""

from jaxrun.process.script import run_script

import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from jaxrun.config.script_options import ScriptOptions
from jaxrun.plots.plots import bars, save

NAMES = {
    "peft": "PEFT, one at a time",
    "crowd": "PEFT, several processes at once",
    "solo": "altojax, one at a time",
    "full": "altojax, all at once",
    "early": "altojax, early exit",
    "eager": "with eager rules",
    "paper": "with the paper's rules",
    "halving": "with successive halving",
    "topk": "with top-k after a fifth",
}
"""Arm -> how tables and pictures call it, in their order."""
COLUMNS = ("data set", "arm", "seconds")


def times_csv(seconds: Mapping[str, Mapping[str, float]]) -> str:
    """Returns the seconds of every arm as rows of a CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for task, of_task in seconds.items():
        writer.writerows([task, name, f"{value:.0f}"] for name, value in of_task.items())
    return text.getvalue()


def read_times(path: Path) -> dict[str, dict[str, float]]:
    """Reads what `times_csv` wrote."""
    found: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
        found.setdefault(row[COLUMNS[0]], {})[row[COLUMNS[1]]] = float(row[COLUMNS[2]])
    return found


def times_picture(seconds: Mapping[str, Mapping[str, float]]) -> Figure:
    """Returns the minutes of every arm that is there, in the order of `NAMES`."""
    shown = [name for name in NAMES if any(name in of_task for of_task in seconds.values())]
    minutes = {
        task: [round(of_task[name] / 60, 1) if name in of_task else float("nan") for name in shown]
        for task, of_task in seconds.items()
    }
    return bars(
        [NAMES[name] for name in shown],
        minutes,
        title="Time to the best of 60 adapters",
        value_label="minutes on one GPU; of PEFT and of one at a time extrapolated from samples",
    )


def main() -> None:
    """Draws the picture of the numbers."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("numbers", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.read()
    save(times_picture(read_times(options.numbers)), options.picture)


if __name__ == "__main__":
    sys.exit(run_script(main))
