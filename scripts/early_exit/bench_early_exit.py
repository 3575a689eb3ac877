"""Early exit against the full grid: one config tuned with its own rules and again with none.

    python scripts/early_exit/bench_early_exit.py [CONFIG] [--out runs/early-exit]

Both runs are `altojax tune`, one after the other; a finished one is read, not run again. Prints two tables: a task a
row (samples trained, best validation loss of the base, with early exit and of the full grid), and the two runs' times.
"""

from jaxrun.process.script import run_script

import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from altojax.report.run_record import RunRecord, read_record
from jaxrun.config.script_options import ScriptOptions
from jaxrun.store.journal import Journal

ARMS = {"early exit": (), "full grid": ("early_exit.preset=none",)}


def main() -> int:
    """Runs both arms and prints the tables."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("config", nargs="?", default="configs/quickstart.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/early-exit"))
    options = parser.read()
    records = []
    for arm, overrides in ARMS.items():
        folder = options.out / arm.replace(" ", "-")
        command = [sys.executable, "-m", "altojax", "tune", options.config, f"output_dir={folder}", *overrides]
        if code := subprocess.run(command, check=False).returncode:
            return code
        with Journal.read(folder) as journal:
            records.append(read_record(journal))
    console = Console(width=max(Console().width, 130))
    console.print(task_table(*records), time_table(records))
    return 0


def task_table(early: RunRecord, full: RunRecord) -> Table:
    """Returns the table of samples and losses, a task a row and all tasks last."""
    table = Table(
        "task", "samples, full grid", "early exit", "saved", "base", "best, full grid", "early exit", "regret"
    )
    for name in (*early.tasks, None):
        kept, whole = ([one for one in record.trials if name in (None, one.task)] for record in (early, full))
        trained, scheduled = (sum(one.samples for one in trials) for trials in (kept, whole))
        cells = [name or "all", str(scheduled), str(trained), f"{1 - trained / scheduled:.1%}"]
        if name is not None:
            best, least = (min(one.best_loss for one in trials) for trials in (kept, whole))
            cells += [f"{early.base_loss[name]:.4f}", f"{least:.4f}", f"{best:.4f}", f"{best / least - 1:.2%}"]
        table.add_row(*cells)
    return table


def time_table(records: list[RunRecord]) -> Table:
    """Returns the table of times, a run a row."""
    table = Table(
        "run", "seconds", "training", "evaluation", "compiling", "compilations", "tokens/s", "one at a time, estimate"
    )
    for arm, record in zip(ARMS, records, strict=True):
        clock = record.clock
        seconds = (clock[key] for key in ("whole_s", "training_s", "evaluation_s", "compile_s"))
        alone = "" if clock["alone_s"] is None else f"{clock['alone_s']:.0f}"
        speed = (str(clock["compiles"]), f"{clock['tokens_per_s']:.0f}", alone)
        table.add_row(arm, *(f"{one:.0f}" for one in seconds), *speed)
    return table


if __name__ == "__main__":
    sys.exit(run_script(main))
