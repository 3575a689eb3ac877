"""Every loss of a run as one JSON object a line, in RUN/metrics.jsonl, for people and their scripts."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxrun.files.atomic import open_to_append, user_errors, write_atomic
from jaxrun.store.journal import Journal
from jaxrun.store.records import Point, scalar

FILE_NAME = "metrics.jsonl"


class MetricsLog:
    """Appends points to RUN/metrics.jsonl.

    The journal is the record and this file its copy: a killed process may leave a torn last line here, and a resumed
    run rewrites the file from the journal (`rebuild`).
    """

    def __init__(self, run_dir: str | Path, journal: Journal) -> None:
        self.path = Path(run_dir) / FILE_NAME
        self._journal = journal

    def log(self, points: Sequence[Point]) -> None:
        """Appends one line per point.

        Raises:
            UserError: Full disk, no permission.
        """
        if points:
            with user_errors(self.path), os.fdopen(open_to_append(self.path), "a", encoding="utf-8") as file:
                file.write(_lines(points))

    def rebuild(self) -> None:
        """Replaces the file by what the journal holds.

        Raises:
            UserError: Full disk, no permission; the old file stays as it was.
        """
        write_atomic(self.path, _lines(self._journal.points()))


def _lines(points: Iterable[Point]) -> str:
    return "".join(json.dumps(_row(point), allow_nan=False) + "\n" for point in points)


def _row(point: Point) -> dict[str, object]:
    """JSON has no NaN: a loss that is not finite becomes null."""
    row = {name: scalar(value) for name, value in dataclasses.asdict(point).items()}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
