"""Gathers the learning curves of runs, of raw and averaged adapters, in one public file.

    python scripts/early_exit/gather_curves.py docs/figures/averaged-curves.csv.gz runs/mine --out curves.csv.gz

Takes folders of runs, and files that it wrote before. A group of the file is a task and the seed of its trials, such as
``e2e_nlg-3``. docs/measured/curves-data.md says what its columns are.
"""

from jaxrun.process.script import run_script

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from altojax.config.tune_config import TuneConfig
from altojax.early_exit.curve import average_name
from altojax.report.run_record import read_record
from jaxrun.config.config import check_config
from jaxrun.config.script_options import ScriptOptions
from jaxrun.config.strict_yaml import parse_yaml
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal

SETTINGS = {
    "schedule": "lr_scheduler_type",
    "learning_rate": "learning_rate",
    "rank": "lora_rank",
    "batch_size": "batch_size",
    "warmup_ratio": "warmup_ratio",
}
"""Column -> field of a trial's configuration."""
WINDOWS = (8.0, 3.0, 30.0)
"""Windows of the averages, in the order of their columns."""
COLUMNS = (
    "group",
    "trial",
    *SETTINGS,
    "step",
    "max_steps",
    "train_loss",
    "val_loss",
    *map(average_name, range(len(WINDOWS))),
)


def rows_of_run(folder: str) -> Iterator[dict[str, Any]]:
    """Yields a run's evaluations, each as the cells of its row.

    Raises:
        UserError: There is no run, or its averages have no column.
    """
    with Journal.read(folder) as journal:
        config = check_config(TuneConfig, parse_yaml(journal.config_text, folder), folder)
        record = read_record(journal)
    for window in config.average_windows:
        if window not in WINDOWS:
            known = ", ".join(f"{one:g}" for one in WINDOWS)
            raise UserError(f"{folder}: average.windows: given {window:g}, expected some of {known}")
    columns = {average_name(WINDOWS.index(one)): average_name(i) for i, one in enumerate(config.average_windows)}
    for trial in record.trials:
        settings = {column: trial.config[field] for column, field in SETTINGS.items()}
        train = {point.step: point.loss for point in trial.train}
        for point in trial.validation:
            losses = {"train_loss": train.get(point.step), "val_loss": point.loss}
            losses |= {column: trial.more.get(own, {}).get(point.step) for column, own in columns.items()}
            yield {
                "group": f"{trial.task}-{trial.config['seed']}",
                "trial": trial.trial,
                **settings,
                "step": point.step,
                "max_steps": trial.total_steps,
                **{name: None if loss is None else f"{loss:.6g}" for name, loss in losses.items()},
            }


def rows_of_file(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file that was gathered before.

    Raises:
        UserError: It is none.
    """
    try:
        rows = list(csv.DictReader(gzip.decompress(path.read_bytes()).decode().splitlines()))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}, expected a run's folder or a file of this script") from error
    if not rows or tuple(rows[0]) != COLUMNS:
        raise UserError(f"{path}: its columns are others, expected {', '.join(COLUMNS)}")
    return rows


def gathered(sources: Sequence[str]) -> bytes:
    """Returns the file of several runs and files: the same bytes for the same curves.

    Raises:
        UserError: A group is in two of them.
    """
    text, seen = io.StringIO(), dict[str, str]()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for source in sources:
        rows = list(rows_of_run(source)) if Path(source).is_dir() else rows_of_file(Path(source))
        for group in sorted({row["group"] for row in rows}):
            if seen.setdefault(group, source) != source:
                raise UserError(f"{source}: group {group} is in {seen[group]} too, expected each once")
        writer.writerows(rows)
    return gzip.compress(text.getvalue().encode(), mtime=0)


def main() -> None:
    """Reads the runs and writes the file."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.read()
    found = gathered(options.runs)
    write_atomic(options.out, found)
    print(f"{options.out}: {len(found):,} bytes")


if __name__ == "__main__":
    raise SystemExit(run_script(main))
