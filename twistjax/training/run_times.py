"""Wall-clock times of a training."""

import time
from dataclasses import dataclass, field
from typing import Any

import pydantic


@dataclass
class TrainingTimes:
    """Wall-clock times, which no decision depends on; they go on over resumptions.

    Attributes:
        before_s: Seconds of earlier parts of the run.
        training_s: Seconds of rounds, without compilation.
        evaluation_s: Seconds of evaluations.
        tokens: Tokens trained on, by all workers.
    """

    before_s: float = 0.0
    training_s: float = 0.0
    evaluation_s: float = 0.0
    tokens: int = 0
    _evaluations_s: list[float] = field(default_factory=list)
    _start: float = field(default_factory=lambda: time.perf_counter())

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began, without the time it lay still."""
        return self.before_s + time.perf_counter() - self._start

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of training."""
        return self.tokens / self.training_s if self.training_s else 0.0

    def add_evaluation(self, seconds: float) -> None:
        """Counts an evaluation."""
        self.evaluation_s += seconds
        self._evaluations_s.append(seconds)

    def left_s(self, done: int, rounds: int, evaluations: int) -> float:
        """Expects how long the rest of the run takes, at the pace so far.

        A process compiles in its first evaluation, whose time is therefore that of no other.

        Args:
            done: Rounds done, at least one.
            rounds: To come.
            evaluations: To come.
        """
        known = self._evaluations_s[1:]
        return self.training_s / done * rounds + (sum(known) / len(known) * evaluations if known else 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        times = {"before_s": self.elapsed_s, "training_s": self.training_s, "evaluation_s": self.evaluation_s}
        return {**times, "tokens": self.tokens}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TrainingTimes":
        """The inverse of `to_dict`.

        Raises:
            pydantic.ValidationError: The data is none.
        """
        return _CLOCK.validate_python(data)


_CLOCK: pydantic.TypeAdapter[TrainingTimes] = pydantic.TypeAdapter(TrainingTimes)
