"""``altojax replay``: recorded learning curves played through presets of early exit."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pydantic
from rich.console import Console
from rich.table import Table

from altojax.early_exit.curve import AVERAGE
from altojax.early_exit.presets import PRESETS
from altojax.early_exit.replay import replay, summary
from altojax.early_exit.rules import Rules
from altojax.report.curve_files import read_curves
from altojax.report.recorded_curves import read_run
from jaxrun.config.config import StrictModel
from jaxrun.config.settings import read_settings
from jaxrun.config.verbs import Args, Positional, Verb
from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError, nearest

DEFAULT_RULES = ("default", "cautious", "eager", "paper", "halving", "median", "topk")
OWN = "own"
"""The name of a run's own rules."""


class ReplaySettings(StrictModel):
    """Settings of ``altojax replay CURVES``.

    Attributes:
        rules: Presets of early_exit, or own for those of the run, a list or with commas between them; null is all that
            compare trials, a run's own first.
        columns: What a file calls its columns otherwise, by the names that they have here, as in
            columns.average_val_loss=average8_val_loss; one column may stand for several.
        out: Write the results here as JSON.
    """

    rules: str | list[str] | None = None
    columns: dict[str, str] = pydantic.Field(default_factory=dict)
    out: str | None = None


def run_replay(
    path: str | Path,
    rules: Sequence[str] | None = None,
    out: Path | None = None,
    tell: Callable[[str], object] = lambda line: None,
    columns: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Replays the curves of a run, or of a file, through presets.

    Args:
        path: A run's folder; or CSV, plain or gzipped, with the columns group, trial, step, max_steps, train_loss,
            val_loss, and average_val_loss where trials are ranked by an average.
        rules: Names of presets, or `OWN` for those of the run; None is all that compare trials, a run's own first.
        out: Where to write the result as JSON.
        tell: Called with a line on what the curves lack.
        columns: What a file calls its columns otherwise, by the names that they have here.

    Returns:
        One row for each preset, in the order given: `rule` and what `summary` returns. Where no rules are given, those
        that need what the curves lack are left out.

    Raises:
        UserError: There are no such curves, there is no such preset, or one that is given cannot be replayed.
    """
    path = Path(path)
    if path.is_dir() and columns:
        raise UserError(f"columns: given for {path}, a run's folder, expected a CSV")
    known = {name: Rules.model_validate({"preset": name}) for name in PRESETS}
    if path.is_dir():
        run = read_run(path)
        groups, known = run.groups, {OWN: run.rules, **known}
        for note in run.notes:
            tell(note)
    names = [name for name in (OWN, *DEFAULT_RULES) if name in known] if rules is None else rules
    if not names:
        raise UserError(f"no rules given, expected some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UserError(f"rules: given '{name}', expected some of {', '.join(known)}{nearest(name, known)}")
    if not path.is_dir():
        groups = read_curves(path, columns)
    columns_of_all = set.intersection(*(set(one.curve.more) for trials in groups.values() for one in trials.values()))
    rows = []
    for name in names:
        if (stand_in := known[name].for_curves(columns_of_all).preset) != known[name].preset:
            tell(f"{name} is {stand_in} here: these curves have no {AVERAGE}")
        try:
            rows.append({"rule": name, **summary(replay(known[name], groups))})
        except UserError as error:
            if rules is not None:
                raise
            tell(f"{name} is left out: {error}")
    if out is not None:
        write_atomic(out, json.dumps(rows, indent=2) + "\n")
    return rows


def _run(args: Args) -> int:
    settings = read_settings(ReplaySettings, args.overrides)
    given = settings.rules.split(",") if isinstance(settings.rules, str) else settings.rules
    names = None if given is None else [name for part in given if (name := part.strip())]
    out = Path(settings.out) if settings.out else None
    console = Console()
    tell = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    rows = run_replay(args["curves"], names, out, tell, settings.columns)
    table = Table(title=f"Early exit replayed on {Path(args['curves']).name}")
    table.add_column("rule")
    gains = any("averages_gain" in row for row in rows)
    for heading in ("saved", "regret mean", "p95", "max", "best kept", *(["averages gain"] if gains else [])):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["rule"],
            f"{row['saved']:.1%}",
            *(f"{row[key]:.2%}" for key in ("regret_mean", "regret_p95", "regret_max")),
            f"{row['best_kept']:.1%}",
            *([f"{row['averages_gain']:.2%}"] if "averages_gain" in row else []),
        )
    console.print(table)
    return 0


REPLAY = Verb(
    name="replay",
    help="Replay recorded learning curves through early-exit rules: steps saved and loss given up, for each rule.",
    run=_run,
    positionals=(Positional("curves", "the output_dir of a run, or a CSV of learning curves, plain or gzipped"),),
    settings=ReplaySettings,
    examples=(
        "altojax replay runs/quickstart",
        "altojax replay curves.csv.gz",
        f"altojax replay curves.csv rules={','.join(DEFAULT_RULES)} out=replay.json",
    ),
)
