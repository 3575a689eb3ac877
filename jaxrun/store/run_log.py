"""Writes a run's events, losses, checkpoints and facts; of several processes only the leader does."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxrun.config.config import StrictModel
from jaxrun.store.journal import Journal
from jaxrun.store.metrics import MetricsLog
from jaxrun.store.records import Checkpoint, Event, Point
from jaxrun.store.trackers import make_trackers

CHECKPOINTS = "checkpoints"
"""The folder at the top of a run's that holds the files of its checkpoints."""


def is_checkpointed(name: str) -> bool:
    """Whether a folder that a checkpoint names is its own, and nothing that the run hands back."""
    return name.startswith(f"{CHECKPOINTS}/")


class RunLog:
    """The journal, the file of losses and the trackers of a run.

    A process that does not lead has one without a journal, which writes nothing.
    """

    def __init__(
        self,
        config: StrictModel,
        journal: Journal | None,
        checkpoint: Checkpoint | None,
        start: Mapping[str, Any],
        *,
        report_to: Sequence[str] = (),
        ended: bool = False,
    ):
        """Restores the run's folder to its last checkpoint.

        Args:
            config: The run.
            journal: The record; None where another process leads.
            checkpoint: What the run resumes from, or None.
            start: Facts of this start, such as the machine.
            report_to: Trackers to start.
            ended: Whether that was the run's end; then later records stay.

        Raises:
            UserError: A file cannot be written, or a tracker cannot start.
        """
        self.journal = journal
        if journal is None:
            return
        if checkpoint is None:
            journal.rewind(-1)
        elif not ended:
            journal.rewind(checkpoint.tick)
        journal.remove_unnamed(CHECKPOINTS)
        self._metrics = MetricsLog(journal.run_dir, journal)
        self._metrics.rebuild()
        journal.append(0 if checkpoint is None else checkpoint.tick, [Event("run_start", payload=dict(start))])
        folder = journal.run_dir
        self._trackers = make_trackers(report_to, folder.name, folder, config.model_dump(mode="json"))

    def add(self, tick: int, events: Sequence[Event], points: Sequence[Point]) -> None:
        """Writes the events and the measured points of a tick.

        Raises:
            UserError: Full disk, no permission.
        """
        if self.journal is None:
            return
        self.journal.append(tick, events, points)
        self._metrics.log(points)
        for tracker in self._trackers:
            tracker.log(points)

    def commit(self, tick: int, manifest: Mapping[str, Any], folders: Sequence[str]) -> None:
        """Names a checkpoint whose files are written; then those that it replaced go.

        Raises:
            UserError: Full disk, no permission.
        """
        if self.journal is None:
            return
        self.journal.commit_checkpoint(tick, manifest, folders)
        self.journal.prune_checkpoints(keep=1)

    def note(self, key: str, value: Any) -> None:
        """Stores a fact of the run, which replaces an older one.

        Raises:
            UserError: Full disk, no permission.
        """
        if self.journal is not None:
            self.journal.set(key, value)

    def noted(self, key: str, default: Any) -> Any:
        """Returns a fact of the run, or `default` where there is none or another process leads."""
        return default if self.journal is None else self.journal.get(key, default)

    def events(self, kind: str | None = None) -> list[Event]:
        """Returns the recorded events, or those of one kind; none where another process leads."""
        return [] if self.journal is None else self.journal.events(kind)

    def close(self) -> None:
        """Ends the trackers."""
        if self.journal is not None:
            for tracker in self._trackers:
                tracker.finish()
