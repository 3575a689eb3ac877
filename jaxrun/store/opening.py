"""Opening a run: its folder belongs to what the run is, however it is written, and the day on which it first opened."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from jaxrun.config.config import StrictModel, config_diff, dump_config, what_was_set
from jaxrun.config.strict_yaml import parse_yaml
from jaxrun.files.atomic import refuse_unwritable, write_atomic
from jaxrun.files.temporary import scratch_folder
from jaxrun.process.errors import NothingYet, UserError
from jaxrun.store.journal import Journal
from jaxrun.store.run_folder import JOURNAL_NAME, refuse_foreign, refuse_held, refuse_read
from jaxrun.store.trackers import check_trackers


@dataclass(frozen=True)
class RunOpening:
    """A run and its folder, which is checked first and opened then, in the same way.

    Attributes:
        config: The run.
        run_dir: Its folder, which need not exist.
        identity: What decides its results, as plain data.
        makes: Names at the top of the folder that belong to the run.
        day: What `day_of` said; kept with a new run.
        overwrite: Removes what an earlier run left there.
        differences: Says what keeps a run of a second identity from resuming one of the first; nothing may.
        reads: What the run reads, by key: paths, or names of something elsewhere.
        report_to: Trackers that will be started.
        least_bytes: Room that the run needs on disk.
    """

    config: StrictModel
    run_dir: Path
    identity: Mapping[str, Any]
    makes: Sequence[str]
    day: date
    overwrite: bool = False
    differences: Callable[[Any, Any], list[str]] = config_diff
    reads: Mapping[str, str] = field(default_factory=dict)
    report_to: Sequence[str] = ()
    least_bytes: int = 0

    def open(self) -> Journal:
        """Opens the journal of the run, new or one to resume, and writes config.yaml beside it.

        Raises:
            UserError: As `Journal.open`.
        """
        return self._open_at(self.run_dir)

    def check(self) -> None:
        """Refuses what `open` would refuse, and writes nothing but a copy of the journal elsewhere.

        Raises:
            UserError: The folder cannot be written, is too small, or holds another run, a live one or somebody's files;
                `overwrite` would remove what the run reads; a tracker's package is missing.
        """
        run_dir = self.run_dir
        refuse_unwritable(run_dir, self.least_bytes)
        check_trackers(self.report_to)
        if not run_dir.is_dir():
            return
        refuse_held(run_dir)
        refuse_foreign(run_dir, self.makes, overwrite=self.overwrite)
        if self.overwrite:
            refuse_read(run_dir, self.makes, self.reads)
        if self.overwrite or not (run_dir / JOURNAL_NAME).exists():
            return
        try:
            with Journal.read(run_dir) as journal:
                journal.last_checkpoint()
        except NothingYet:
            return
        with scratch_folder("journal") as elsewhere:
            for name in (JOURNAL_NAME, f"{JOURNAL_NAME}-wal"):
                if (run_dir / name).exists():
                    shutil.copyfile(run_dir / name, elsewhere / name)
            try:
                self._open_at(elsewhere).close()
            except UserError as error:
                raise UserError(str(error).replace(str(elsewhere), str(run_dir))) from None

    def _open_at(self, folder: Path) -> Journal:
        text = dump_config(self.config)
        journal = Journal.open(
            folder,
            config_text=text,
            identity=self.identity,
            differences=self.differences,
            overwrite=self.overwrite,
            makes=self.makes,
            facts={"day": self.day.isoformat()},
        )
        write_atomic(folder / "config.yaml", text)
        return journal


def refuse_run_of_another(journal: Journal, key: str, verb: str) -> None:
    """Refuses a run whose config has a key that no run of `verb`, such as ``altojax tune``, has.

    Raises:
        UserError: Another program made it.
    """
    config = parse_yaml(journal.config_text, str(journal.run_dir))
    if isinstance(config, dict) and key in config:
        raise UserError(f"{journal.run_dir}: its config has '{key}', expected a run of {verb}")


def data_identity(config: StrictModel, digest: str) -> dict[str, Any]:
    """Returns what a run is trained and judged on: the rows count, however they were asked for."""
    return {"digest": digest, "config": what_was_set(config)}


def data_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns what of the data differs: the keys that may be why, else that it is the rows themselves."""
    if old["digest"] == new["digest"]:
        return []
    return [f"data.{key}" for key in config_diff(old["config"], new["config"])] or ["data (the rows are other ones)"]


def day_of(run_dir: Path, *, overwrite: bool = False) -> date:
    """Returns the day on which a run first opened: all that it does is done as on that day; today for a new run.

    Args:
        run_dir: Its folder, which need not be there.
        overwrite: Whether what is there will make way for a new run.
    """
    if overwrite:
        return date.today()
    try:
        with Journal.read(run_dir) as journal, journal.interpreted():
            return date.fromisoformat(journal.get("day") or date.today().isoformat())
    except UserError:  # no run that could be resumed, or one that `Journal.open` will refuse
        return date.today()
