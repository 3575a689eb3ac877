"""Opening a run: its folder belongs to one config, one data set and the day on which it first opened."""

import hashlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from harness.config import StrictModel, dump_config
from harness.errors import UserError
from harness.files import write_atomic
from harness.journal import Journal

_ELSEWHERE = {"output_dir", "report_to"}


def open_run(
    config: StrictModel,
    run_dir: Path,
    data_digests: Sequence[str],
    *,
    makes: Sequence[str],
    day: date,
    overwrite: bool = False,
    aside: Sequence[str] = (),
) -> Journal:
    """Opens the journal of a run, new or one to go on with, and writes config.yaml beside it.

    Args:
        config: The run; where it lies and who is told of it may change from call to call.
        run_dir: Its folder.
        data_digests: Of what it is trained and judged on.
        makes: Names at the top of the folder that belong to the run.
        day: What `day_of` said; kept with a new run.
        overwrite: Removes what an earlier run left there.
        aside: More keys of the config that may change.

    Raises:
        UserError: As `Journal.open`.
    """
    digest = hashlib.sha256(repr(sorted(kept(config, aside).items())).encode())
    for one in data_digests:
        digest.update(one.encode())
    text = dump_config(config)
    facts = {"day": day.isoformat()}
    journal = Journal.open(
        run_dir, config_text=text, config_digest=digest.hexdigest(), overwrite=overwrite, makes=makes, facts=facts
    )
    write_atomic(run_dir / "config.yaml", text)
    return journal


def kept(config: StrictModel, aside: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the keys of a config that must stay as they are for the whole run, as plain data.

    Args:
        config: The run.
        aside: Keys that may change, beside where it lies and who is told of it.
    """
    return config.model_dump(mode="json", exclude=_ELSEWHERE | set(aside))


def day_of(run_dir: Path, *, overwrite: bool = False) -> date:
    """Returns the day on which a run first opened: all that it does is done as on that day; today for a new run.

    Args:
        run_dir: Its folder, which need not be there.
        overwrite: Whether what is there will make way for a new run.
    """
    if overwrite:
        return date.today()
    try:
        with Journal.read(run_dir) as journal:
            return date.fromisoformat(journal.get("day") or date.today().isoformat())
    except UserError:  # no run that could be gone on with, or one that `Journal.open` will refuse
        return date.today()
