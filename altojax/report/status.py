"""``altojax status``: where a run stands, as a table, while it is live or after."""

import math

from altojax.report.run_record import RunRecord, TrialRecord, record_of
from altojax.report.trial_labels import labels
from jaxrun.config.verbs import Args, Positional, Verb
from jaxrun.terminal.progress import duration
from jaxrun.terminal.tables import print_table


def run(args: Args) -> int:
    """Runs ``altojax status RUN``."""
    _print(record_of(args["run"]))
    return 0


def _print(record: RunRecord) -> None:
    columns = ("task", "trial", "status", "settings", "step", "of", "best loss", "at step", "base loss", "why")
    rows, counts = [], dict[str, int]()
    for task in record.tasks:
        trials, best = record.of_task(task), record.best_of(task)
        for trial, label in zip(trials, labels([one.config for one in trials]), strict=True):
            status = "interrupted" if trial.status == "running" and not record.live else trial.status
            counts[status] = counts.get(status, 0) + 1
            rows.append(_row(trial, status + (" (best)" if trial is best else ""), label))
    print_table(columns, rows, right=range(4, 9))
    print()
    print(", ".join(f"{count} {status}" for status, count in counts.items()) or "no trials yet")
    for task in record.tasks:
        best = record.best_of(task)
        if best is not None and best.accuracy is not None:
            print(f"{task}: {best.trial}: {best.accuracy_sentence()}")
    for task, found in record.held_out.items():
        print(f"{task}: {found.trial}: {found.sentence()}")
    if record.clock:
        clock = record.clock
        print(
            f"{duration(clock['whole_s'])} at the last checkpoint, {clock['tokens_per_s']:,.0f} tokens/s, "
            f"{clock['compiles']} compilations"
        )
        if clock["devices"] > 1:
            print(f"{clock['devices']} devices; they wait for the busiest {100 * clock['imbalance']:.1f} % of the time")
    print(record.state)


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
