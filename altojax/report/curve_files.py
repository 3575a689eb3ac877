"""Reads recorded learning curves from CSV."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from altojax.early_exit.curve import Curve, average_name
from altojax.early_exit.metric import METRIC_NAMES
from altojax.early_exit.milestones import recorded_schedule
from altojax.early_exit.replay import RecordedTrial
from altojax.early_exit.rules import REGISTERED
from jaxrun.process.errors import UserError, nearest

COLUMNS = {
    "group": pa.string(),
    "trial": pa.string(),
    "step": pa.float64(),
    "max_steps": pa.float64(),
    "train_loss": pa.float64(),
    "val_loss": pa.float64(),
}
WARMUP = "warmup_ratio"
"""A column that may be there: the share of a trial's steps in which it warms up, before which it is not compared."""
_WINDOWS = 9


def read_curves(path: str | Path, columns: Mapping[str, str] | None = None) -> dict[str, dict[str, RecordedTrial]]:
    """Reads a CSV, plain or compressed as its ending says, with the columns of `COLUMNS`.

    Other columns of numbers are read beside them: losses of averaged adapters, which are empty where they were not
    evaluated, and what else some rule needs. A loss that is empty, nan or inf was not finite. Rows may come in any
    order.

    Args:
        path: Of the file.
        columns: What the file calls a column otherwise, by its name here; one of the file may stand for several.

    Returns:
        The trials by name, by group; both in the order of their names.

    Raises:
        UserError: The file cannot be read, has no rows, lacks a column, has no training loss at all, holds something
            that is not a number or a step that cannot be.
    """
    table = _named(_read(Path(path), columns or {}), columns or {}, path)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        hint = nearest(missing[0], table.column_names)
        found = ", ".join(table.column_names[:12])
        raise UserError(f"{path}: no column '{missing[0]}', expected {', '.join(COLUMNS)}; found {found}{hint}")
    if not table.num_rows:
        raise UserError(f"{path}: no rows below the header, expected one for each evaluation")
    for name in ("step", "max_steps"):
        if table[name].null_count:
            raise UserError(f"{path}: column '{name}' has empty cells, expected a number in every row")
    group, trial = (np.asarray(table[name].to_numpy(zero_copy_only=False), str) for name in ("group", "trial"))
    numbers = {
        name: np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
        for name, column in zip(table.column_names, table.columns, strict=True)
        if name not in ("group", "trial") and any(kind(column.type) for kind in _NUMBERS)
    }
    if not np.isfinite(numbers["train_loss"]).any() and np.isfinite(numbers["val_loss"]).any():
        raise UserError(
            f"{path}: column 'train_loss' has no number in any row, by which every trial would end as not finite, "
            "expected training losses; columns={train_loss: val_loss} has validation losses stand for them"
        )
    order = np.lexsort((numbers["step"], trial, group))
    group, trial = group[order], trial[order]
    numbers = {name: column[order] for name, column in numbers.items()}
    new = np.flatnonzero(np.append(True, (group[1:] != group[:-1]) | (trial[1:] != trial[:-1])))
    groups: dict[str, dict[str, RecordedTrial]] = {}
    for start, stop in zip(new, np.append(new[1:], len(group)), strict=True):
        where = f"{path}: group '{group[start]}', trial '{trial[start]}'"
        rows = {name: column[start:stop] for name, column in numbers.items()}
        groups.setdefault(str(group[start]), {})[str(trial[start])] = _trial(rows, where)
    return groups


_NUMBERS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_null)


def _kinds(columns: Mapping[str, str]) -> dict[str, pa.DataType]:
    """Types of the columns that hold nothing else, by their names in the file."""
    needed = {name for rule in REGISTERED.values() for name in rule().needs}
    more = {*needed, WARMUP, *map(average_name, range(_WINDOWS)), *METRIC_NAMES} - COLUMNS.keys()
    kinds = {**COLUMNS, **dict.fromkeys(sorted(more), pa.float64())}
    return {columns.get(name, name): kind for name, kind in kinds.items()}


def _named(table: pa.Table, columns: Mapping[str, str], path: str | Path) -> pa.Table:
    """Returns a table with the columns that it calls otherwise also by their names here."""
    names = [*COLUMNS, WARMUP, *map(average_name, range(_WINDOWS)), *METRIC_NAMES]
    for name, given in columns.items():
        if name not in names:
            raise UserError(f"columns: given '{name}', expected some of {', '.join(names[:8])}{nearest(name, names)}")
        if given not in table.column_names:
            raise UserError(f"{path}: no column '{given}' for {name}{nearest(given, table.column_names)}")
    own = {name: table[name] for name in table.column_names if name not in columns}
    return pa.table({**own, **{name: table[given] for name, given in columns.items()}})


def _read(path: Path, columns: Mapping[str, str]) -> pa.Table:
    if path.suffix in (".yaml", ".yml") and path.is_file():
        raise UserError(f"{path}: a config, expected the output_dir of its run, or a CSV with {', '.join(COLUMNS)}")
    try:
        kinds = pyarrow.csv.ConvertOptions(column_types=_kinds(columns), strings_can_be_null=False)
        table = pyarrow.csv.read_csv(path, convert_options=kinds)
        table.column_names  # noqa: B018  # which are decoded here, and not as the file is read
        return table
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: its header is not UTF-8, expected a CSV file in UTF-8") from error
    except FileNotFoundError as error:
        beside = [other.name for other in path.parent.glob("*.csv*")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{nearest(path.name, beside)}") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}; expected a CSV with {', '.join(COLUMNS)}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or str(error).splitlines()[0]}, expected a CSV file") from error


def _trial(rows: Mapping[str, np.ndarray], where: str) -> RecordedTrial:
    steps, most = rows["step"], rows["max_steps"]
    if not (np.isfinite(most[0]) and most[0] >= 1) or np.any(most != most[0]):
        given = ", ".join(f"{value:g}" for value in np.unique(most)[:3])
        raise UserError(f"{where}: max_steps is {given}, expected one number of at least 1")
    if not np.all((steps >= 0) & (steps <= most)):
        bad = steps[~((steps >= 0) & (steps <= most))][0]
        raise UserError(f"{where}: step {bad:g}, expected 0 to max_steps = {most[0]:g}")
    if np.any(np.diff(steps) == 0):
        twice = steps[:-1][np.diff(steps) == 0][0]
        raise UserError(f"{where}: step {twice:g} stands there twice, expected one row for each evaluation")
    more = {name: rows[name] for name in rows.keys() - COLUMNS.keys()}
    curve = Curve(steps / most, rows["train_loss"], rows["val_loss"], more)
    warmup = rows[WARMUP] if WARMUP in rows else np.zeros(1)
    if not 0 <= warmup[0] < 1 or np.any(warmup != warmup[0]):
        given = ", ".join(f"{value:g}" for value in np.unique(warmup)[:3])
        raise UserError(f"{where}: {WARMUP} is {given}, expected one number from 0 to below 1")
    return RecordedTrial(steps, int(most[0]), curve, recorded_schedule(int(most[0]), steps.tolist(), float(warmup[0])))
