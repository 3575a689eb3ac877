"""``altojax status``: where a run stands, as a table, while it is live or after."""

import math
from pathlib import Path

from altojax.report.run_record import RunRecord, TrialRecord, record_of
from altojax.report.trial_labels import labels
from jaxrun.config.verbs import Args, Positional, Verb
from jaxrun.store.records import record_errors
from jaxrun.store.run_folder import JOURNAL_NAME
from jaxrun.terminal.progress import duration
from jaxrun.terminal.tables import print_table


def run(args: Args) -> int:
    """Runs ``altojax status RUN``."""
    record = record_of(args["run"])
    with record_errors(Path(args["run"]) / JOURNAL_NAME):
        rows, lines = _told(record)
    columns = ("task", "trial", "status", "settings", "step", "of", "best loss", "at step", "base loss", "why")
    print_table(columns, rows, right=range(4, 9))
    print("", *lines, sep="\n")
    return 0


def _told(record: RunRecord) -> tuple[list[tuple[str, ...]], list[str]]:
    """Returns the rows of the table, and the lines below it."""
    rows, counts = [], dict[str, int]()
    for task in record.tasks:
        trials, best = record.of_task(task), record.best_of(task)
        for trial, label in zip(trials, labels([one.config for one in trials]), strict=True):
            status = "interrupted" if trial.status == "running" and not record.live else trial.status
            counts[status] = counts.get(status, 0) + 1
            rows.append(_row(trial, status + (" (best)" if trial is best else ""), label))
    lines = [", ".join(f"{count} {status}" for status, count in counts.items()) or "no trials yet"]
    for task in record.tasks:
        if start := record.of_task(task)[0].start:
            lines.append(f"{task}: starts from {start}")
        best = record.best_of(task)
        if best is not None and best.metric is not None:
            lines.append(f"{task}: {best.trial}: {best.metric_sentence()}")
    lines += [f"{task}: {found.trial}: {found.sentence()}" for task, found in record.held_out.items()]
    if record.clock:
        clock = record.clock
        pace = f"{clock['tokens_per_s']:,.0f} tokens/s, {clock['compiles']} compilations"
        lines.append(f"{duration(clock['whole_s'])} at the last checkpoint, {pace}")
        if clock["devices"] > 1:
            waits = f"{100 * clock['imbalance']:.1f} % of the time"
            lines.append(f"{clock['devices']} devices; they wait for the busiest {waits}")
    return rows, [*lines, record.state]


def _row(trial: TrialRecord, status: str, label: str) -> tuple[str, ...]:
    best = trial.best
    return (
        trial.task,
        trial.trial,
        status,
        label,
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
