"""What a user hands to a queue, as its store keeps it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pydantic


@dataclass(frozen=True)
class Submission:
    """What a user submits.

    Attributes:
        config: The whole `TuneConfig` as JSON, its paths absolute.
        output_dir: The run's folder.
        tasks: Names of its tasks.
        gpus: GPU counts that it can use, ascending.
        trials: Trials of all of its tasks.
        samples: Samples that they are expected to train on.
        workloads: What its speed depends on (`altojax.engines.profile.Workload`, one for each base), as JSON.
        key: Tasks with equal keys may share one executor; empty where a task shares with none.
    """

    config: str
    output_dir: str
    tasks: tuple[str, ...]
    gpus: tuple[int, ...]
    trials: int
    samples: float
    workloads: str
    key: str = ""

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
    return replace(
        members[0],
        config=config,
        output_dir=output_dir,
        tasks=tuple(tasks),
        gpus=tuple(sorted(set(members[0].gpus).intersection(*(member.gpus for member in members)))),
        trials=sum(member.trials for member in members),
        samples=sum(member.samples for member in members),
    )
