"""What a user hands to a queue, as its store keeps it."""

from collections.abc import Sequence
from dataclasses import replace

import pydantic


@pydantic.dataclasses.dataclass(frozen=True)
class Workload:
    """What is to be trained, as far as its speed and its length depend on it.

    Attributes:
        samples: Samples that all trials together are expected to train on.
        trials: Trials.
        batch: Mean samples of a trial's optimizer step.
        length: Tokens of the longest row, as rows are padded.
        rank: Largest rank.
        parameters: Of the base; with several of the largest.
        base: Names the base, its dtype and how it is computed.
        slots: Trials that train at once, where the config says so.
        key: Tasks with equal keys may share one executor; empty where a task shares with none.
    """

    samples: float
    trials: int
    batch: float
    length: int
    rank: int
    parameters: int
    base: str
    slots: int | None
    key: str


@pydantic.dataclasses.dataclass(frozen=True)
class Submission:
    """What a user submits.

    Attributes:
        config: The whole `TuneConfig` as JSON, its paths absolute.
        output_dir: The run's folder.
        tasks: Names of its tasks.
        gpus: GPU counts that it can use, ascending.
        workload: What is to be trained.
    """

    config: str
    output_dir: str
    tasks: tuple[str, ...]
    gpus: tuple[int, ...]
    workload: Workload

    def to_json(self) -> str:
        """Returns it as one line of JSON."""
        return _SUBMISSION.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Submission":
        """The inverse of `to_json`.

        Raises:
            pydantic.ValidationError: The text is none.
        """
        return _SUBMISSION.validate_json(text)


_SUBMISSION: pydantic.TypeAdapter[Submission] = pydantic.TypeAdapter(Submission)


def merged_submission(members: Sequence[Submission], config: str, output_dir: str, tasks: Sequence[str]) -> Submission:
    """Returns what several merged tasks come to.

    Args:
        members: What was submitted, at least one.
        config: The shared run's, as JSON.
        output_dir: Its folder.
        tasks: Names of its tasks.
    """
    works = [member.workload for member in members]
    trials = sum(work.trials for work in works)
    workload = replace(
        works[0],
        samples=sum(work.samples for work in works),
        trials=trials,
        batch=sum(work.batch * work.trials for work in works) / trials,
        length=max(work.length for work in works),
        rank=max(work.rank for work in works),
    )
    gpus = set(members[0].gpus).intersection(*(member.gpus for member in members))
    return Submission(config, output_dir, tuple(tasks), tuple(sorted(gpus)), workload)
