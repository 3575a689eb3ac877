"""Progress of running tasks, read from their journals: liveness, samples, speed.

All of it is in a run's newest checkpoint: a look costs little however long the run is, and finds what would be left if
the run died now.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from altojax.cluster.scheduling.records import Progressed, SchedulerEvent, Started
from altojax.cluster.scheduling.resources.task import Task
from altojax.cluster.task_estimates.remaining_samples import expected_samples, standings
from altojax.config.tune_config import MOST_TRIALS
from altojax.early_exit.rules import Rules
from jaxrun.process.errors import UserError
from jaxrun.store.journal import Journal
from jaxrun.store.records import RECORD_BYTES
from jaxrun.store.run_folder import JOURNAL_NAME

LOOK_S = 5.0
"""Seconds between two looks at a running task."""
_CHANGE = 0.05
"""Share by which samples or speed must differ from what the scheduler thinks for it to be told."""
_MEASURED_S = 20.0
"""Least seconds of a run that a speed is taken from."""


@dataclass(frozen=True)
class RunStanding:
    """The progress of a run.

    Attributes:
        started_s: When a process began to train it last, in seconds since the epoch; None before the first.
        left: Samples that it is expected to need from its newest checkpoint on; None before the first.
        samples: Samples that it had trained on by then.
        elapsed_s: Seconds that it had run by then.
        trials: Its trials.
        done: Those that had ended.
    """

    started_s: float | None
    left: float | None = None
    samples: int = 0
    elapsed_s: float = 0.0
    trials: int = 0
    done: int = 0


def read_standing(run_dir: Path, rules: Rules) -> RunStanding | None:
    """Returns how far a run is; None where there is no journal yet that can be read."""
    if not (run_dir / JOURNAL_NAME).is_file():
        return None
    try:
        with Journal.read(run_dir, most_bytes=RECORD_BYTES) as journal, journal.interpreted():
            starts, trials = journal.events("run_start", newest=1), journal.get("trials", [])
            manifest = journal.manifest()
            started_s = starts[-1].wall_s if starts else None
            if manifest is None:
                return RunStanding(started_s, trials=len(trials))
            found = standings(trials, manifest["progress"])
            elapsed_s = float(manifest["clock"]["before_s"])
    except UserError:  # it is just being made, or is damaged, which the run itself will say
        return None
    flat = [one for of_task in found.values() for one in of_task]
    return RunStanding(
        started_s,
        expected_samples(found, rules),
        sum(one.done for one in flat),
        elapsed_s,
        len(flat),
        sum(one.ended for one in flat),
    )


class ProgressMonitor:
    """Looks at running tasks, each every few seconds, and says what the scheduler does not know yet."""

    def __init__(self, made_s: float, *, look_s: float = LOOK_S, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts with nothing seen.

        Args:
            made_s: When the queue was made, in seconds since the epoch.
            look_s: Seconds between two looks at one task.
            clock: Seconds that only grow.
        """
        self._made_s, self._look_s, self._clock = made_s, look_s, clock
        self._next_s: dict[str, float] = {}
        self._first: dict[tuple[str, int], RunStanding] = {}
        self._last: dict[str, RunStanding] = {}

    def is_due(self, job: str) -> bool:
        """Whether a task was last looked at long enough ago."""
        return self._clock() >= self._next_s.get(job, 0.0)

    def look(self, task: Task, run_dir: Path, rules: Rules, now_s: float) -> list[SchedulerEvent]:
        """Looks at a running task and returns what is new.

        Args:
            task: What the scheduler knows of it.
            run_dir: Its run's folder.
            rules: Its early exit.
            now_s: Seconds since the queue was made.
        """
        name = task.job.name
        self._next_s[name] = self._clock() + self._look_s
        standing = read_standing(run_dir, rules)
        # The clocks of two hosts may differ by a moment.
        if standing is None or standing.started_s is None or standing.started_s - self._made_s < task.began_s - 2.0:
            return []
        events: list[SchedulerEvent] = [] if task.set_up else [Started(now_s, name, task.attempt)]
        # Between two checkpoints the scheduler counts down by itself.
        if standing.left is not None and standing != self._last.get(name):
            speeds = self._speeds(task, standing)
            width = task.width
            behind = abs(standing.left - task.left(now_s)) > _CHANGE * max(task.job.samples, 1.0)
            other = any(abs(speed / task.job.speeds[width] - 1) > _CHANGE for speed in speeds.values())
            if behind or other:
                events.append(Progressed(now_s, name, standing.left, speeds))
        self._last[name] = standing
        return events

    def forget(self, job: str) -> None:
        """Drops what was seen of a task that runs no more."""
        self._next_s.pop(job, None)
        self._last.pop(job, None)
        for key in [key for key in self._first if key[0] == job]:
            del self._first[key]

    def _speeds(self, task: Task, standing: RunStanding) -> Mapping[int, float]:
        """Samples a second from the first checkpoint seen of this attempt, which is after compiling, to the last."""
        first = self._first.setdefault((task.job.name, task.attempt), standing)
        seconds, samples = standing.elapsed_s - first.elapsed_s, standing.samples - first.samples
        return {task.width: samples / seconds} if seconds >= _MEASURED_S and samples > 0 else {}


def trials_done(run_dir: str, tasks: Collection[str]) -> int | None:
    """Returns how many trials of some tasks of a run have ended; None where there is no journal that may be read."""
    try:
        if not (Path(run_dir) / JOURNAL_NAME).is_file():
            return None
        with Journal.read(run_dir, most_bytes=RECORD_BYTES) as journal:
            return sum(count for task, count in journal.count("end", newest=MOST_TRIALS).items() if task in tasks)
    except (OSError, UserError):
        return None
