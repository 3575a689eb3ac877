"""``altojax report``: trials.csv, report.html and the same pictures as PNG, from a run's journal alone."""

from pathlib import Path
from typing import TYPE_CHECKING

from jaxrun.config.verbs import Args, Positional, Verb
from jaxrun.files.atomic import write_atomic
from jaxrun.store.journal import Journal
from jaxrun.store.opening import refuse_run_of_another

if TYPE_CHECKING:
    from altojax.report.run_record import RunRecord


def write_report(run_dir: str | Path) -> list[Path]:
    """Writes trials.csv, plots/*.png and report.html into a run's folder, of a finished run or a live one.

    Returns:
        What was written.

    Raises:
        UserError: There is no run, or its folder cannot be written.
    """
    from altojax.report.run_record import read_record

    run_dir = Path(run_dir)
    with Journal.read(run_dir) as journal:
        refuse_run_of_another(journal, "data", "altojax tune")
        record, config_text = read_record(journal), journal.config_text
    return _write(run_dir, record, config_text)


def _write(run_dir: Path, record: "RunRecord", config_text: str) -> list[Path]:
    from altojax.report.figures import run_pictures, task_pictures
    from altojax.report.page import report_page
    from altojax.report.record_tables import trials_csv
    from jaxrun.plots.pictures import save_pictures

    of_tasks = {task: task_pictures(record, task) for task in record.tasks}
    of_run = run_pictures(record)
    save_pictures(run_dir / "plots", [*(picture for pictures in of_tasks.values() for picture in pictures), *of_run])
    write_atomic(run_dir / "trials.csv", trials_csv(record))
    write_atomic(run_dir / "report.html", report_page(run_dir, record, of_tasks, of_run, config_text))
    return [run_dir / "trials.csv", run_dir / "plots", run_dir / "report.html"]


def run(args: Args) -> int:
    """Runs ``altojax report RUN``."""
    for path in write_report(args["run"]):
        print(path)
    return 0


VERB = Verb(
    name="report",
    help="Write a run's trials.csv, plots/*.png and report.html again, also while it is live.",
    run=run,
    positionals=(Positional("run", "the output_dir of a run"),),
    examples=("altojax report runs/quickstart",),
)
