"""Tunes the same trials on a base in several stored forms, and says whether they rank the same.

    python scripts/devices/rank_on_forms.py configs/quickstart.yaml [key=value ...]
        [--forms none int8 nf4 nf4_double int4] [--out runs/forms]

A run of the config for each form of `model.quantize`, in a folder of --out, to the end of every trial. The same command
goes on where it was stopped, and does nothing again that is done. Prints a table for each task: of each trial its
validation loss in every form; and of each form, beside the first one, Kendall's and Spearman's correlation of all
losses, whether the same trial is best, by how much the best loss differs, and what the trial that is best in this form
costs in the first one. Twelve trials of every task of the quick start, all of their validation rows:

    python scripts/devices/rank_on_forms.py configs/quickstart.yaml 'search={train_samples: 384, batch_size: 8,
        learning_rate: [3.0e-4, 1.0e-3, 3.0e-3, 1.0e-2], lora_rank: [4, 16, 64], lr_scheduler_type: cosine}'
        tasks.0.data.validation_samples=32 tasks.1.data.validation_samples=32 tasks.2.data.validation_samples=32
"""

from jaxrun.process.script import run_script

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau, spearmanr

from altojax.cli import main as altojax_main
from altojax.config.tune_config import TuneConfig
from altojax.report.run_record import RunRecord, read_record
from jaxlm.quantised.formats import PACKS
from jaxrun.config.script_options import ScriptOptions
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal


def main() -> int:
    """Tunes on every form that is not done and prints the tables."""
    parser = ScriptOptions(__doc__, TuneConfig)
    parser.add_argument("config", help="of a run of altojax tune")
    parser.add_argument("--forms", nargs="+", choices=["none", "keep", *PACKS], default=["none", *PACKS])
    parser.add_argument("--out", type=Path, default=Path("runs/forms"))
    options = parser.read()
    records = {}
    for form in options.forms:
        words = [*options.overrides, f"output_dir={options.out / form}", f"model.quantize={form}"]
        if code := altojax_main(["tune", options.config, *words, "early_exit={preset: none}"]):
            return code
        with Journal.read(options.out / form) as journal:
            records[form] = read_record(journal)
    console = Console(width=160)
    for task in next(iter(records.values())).tasks:
        for table in tables_of(task, records):
            console.print(table)
    return 0


def tables_of(task: str, records: dict[str, RunRecord]) -> tuple[Table, Table]:
    """Returns the losses of a task's trials in each form, and how each form ranks them beside the first one."""
    trials = {form: record.of_task(task) for form, record in records.items()}
    first, *others = trials
    losses = {form: np.array([one.best_loss for one in own]) for form, own in trials.items()}
    if any([one.trial for one in own] != [one.trial for one in trials[first]] for own in trials.values()):
        raise UserError(f"{task}: its trials on {first} are not those on {', '.join(others)}, expected one config")
    each = Table(f"{task}: trial", *trials)
    for place, trial in enumerate(trials[first]):
        each.add_row(trial.trial, *(f"{own[place]:.4f}" for own in losses.values()))
    bases = (record.base_loss.get(task) for record in records.values())
    each.add_row("base", *("" if one is None else f"{one:.4f}" for one in bases))
    ranks = Table(f"{task}: beside {first}", "Kendall", "Spearman", "best", "best loss", f"its cost on {first}")
    for form in others:
        ranks.add_row(form, *beside(losses[first], losses[form], [one.trial for one in trials[first]]))
    return each, ranks


def beside(wanted: np.ndarray, found: np.ndarray, names: Sequence[str]) -> tuple[str, ...]:
    """Returns how losses agree with those that they are compared with, in the columns of the second table."""
    best, chosen = int(wanted.argmin()), int(found.argmin())
    correlations = (kendalltau(wanted, found).statistic, spearmanr(wanted, found).statistic)
    name = "the same" if best == chosen else f"{names[chosen]}, not {names[best]}"
    return (
        *(f"{one:.3f}" for one in correlations),
        name,
        f"{found[chosen] - wanted[best]:+.4f}",
        f"{wanted[chosen] - wanted[best]:+.4f}",
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
