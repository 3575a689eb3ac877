"""A submitted task, as the queue's store keeps it."""

from dataclasses import dataclass

import pydantic


@dataclass(frozen=True)
class Submission:
    """A submission of a user.

    Attributes:
        config: The whole `TuneConfig` as JSON, its paths absolute.
        output_dir: The run's folder.
        tasks: Names of its tasks.
        gpus: GPU counts that it can use, ascending.
        trials: Trials of all of its tasks.
        samples: Samples that they are expected to train on.
        workloads: What its speed depends on (`altojax.cluster.task_estimates.speed_profile.BaseWorkload`, one for each
            base), as JSON.
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
