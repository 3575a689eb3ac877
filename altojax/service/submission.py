"""What a user hands to a queue, as its store keeps it."""

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
