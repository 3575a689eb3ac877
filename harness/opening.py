"""Opening a run: its folder belongs to one config, one data set and the day on which it first opened."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from harness.config import StrictModel, dump_config
from harness.errors import UserError
from harness.files import refuse_unwritable, write_atomic
from harness.journal import Journal
from harness.run_folder import JOURNAL_NAME, refuse_foreign, refuse_held
from harness.trackers import check_trackers

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


def check_opening(
    run_dir: Path,
    open_at: Callable[[Path], Journal],
    *,
    makes: Sequence[str],
    overwrite: bool = False,
    report_to: Sequence[str] = (),
    least_bytes: int = 0,
) -> None:
    """Refuses what opening a run would refuse, and writes nothing but a copy of its journal elsewhere.

    Args:
        run_dir: The run's folder, which need not be there.
        open_at: Opens the run in a folder: the same call that is going to open it in its own.
        makes: Names at the top of the folder that belong to the run.
        overwrite: Whether an earlier run there makes way.
        report_to: Trackers that will be started.
        least_bytes: Room that the run needs on disk.

    Raises:
        UserError: The folder cannot be written, is too small, or holds another run, a live one or somebody's files; a
            tracker's package is missing.
    """
    refuse_unwritable(run_dir, least_bytes)
    check_trackers(report_to)
    if not run_dir.is_dir():
        return
    refuse_held(run_dir)
    refuse_foreign(run_dir, makes, overwrite=overwrite)
    if overwrite or not (run_dir / JOURNAL_NAME).exists():
        return
    with Journal.read(run_dir) as journal:
        journal.last_checkpoint()
    with tempfile.TemporaryDirectory(prefix="journal-") as elsewhere:
        for name in (JOURNAL_NAME, f"{JOURNAL_NAME}-wal"):
            if (run_dir / name).exists():
                shutil.copyfile(run_dir / name, Path(elsewhere) / name)
        try:
            open_at(Path(elsewhere)).close()
        except UserError as error:
            raise UserError(str(error).replace(elsewhere, str(run_dir))) from None


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
