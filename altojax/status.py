"""``altojax status``: where a run stands, as a table, while it is live or after."""

import math

from altojax.record import TrialRecord, read_record
from harness.cli import Args, Positional, Verb
from harness.journal import Journal
from harness.progress import duration
from harness.tables import print_table


def run(args: Args) -> int:
    """Runs ``altojax status RUN``."""
    with Journal.read(args["run"]) as journal:
        record = read_record(journal)
    columns = ("task", "trial", "status", "step", "of", "best loss", "at step", "base loss", "why")
    rows = [_row(trial, record.best_of(trial.task) is trial) for trial in record.trials]
    print_table(columns, rows, right=range(3, 8))
    print()
    counts: dict[str, int] = {}
    for trial in record.trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    print(", ".join(f"{count} {status}" for status, count in counts.items()) or "no trials yet")
    if record.clock:
        clock = record.clock
        print(
            f"{duration(clock['whole_s'])} at the last checkpoint, {clock['tokens_per_s']:,.0f} tokens/s, "
            f"{clock['compiles']} compilations"
        )
        if clock.get("devices", 1) > 1:
            print(f"{clock['devices']} devices; they wait for the busiest {100 * clock['imbalance']:.1f} % of the time")
    print("finished" if record.finished else "not finished: live, or interrupted (run tune again to go on)")
    return 0


def _row(trial: TrialRecord, is_best: bool) -> tuple[str, ...]:
    best = trial.best
    return (
        trial.task,
        trial.trial,
        trial.status + (" (best)" if is_best else ""),
        str(trial.steps),
        str(trial.total_steps),
        f"{trial.best_loss:.4f}" if math.isfinite(trial.best_loss) else "-",
        "-" if best is None else str(best.step),
        "-" if trial.base_loss is None else f"{trial.base_loss:.4f}",
        trial.reason if trial.status == "stopped" else "",
    )


VERB = Verb(
    name="status",
    help="Show where every trial of a run stands, also while it is live.",
    run=run,
    positionals=(Positional("run", "the output_dir of a run"),),
    examples=("altojax status runs/quickstart",),
)
