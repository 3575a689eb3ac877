"""Wall-clock times of a run, kept over its resumptions."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Self

import pydantic


@dataclass
class WallTimes:
    """Wall-clock times, which no decision depends on; they accumulate over resumptions.

    Attributes:
        before_s: Seconds of earlier parts of the run.
        training_s: Seconds of training, without compilation.
        evaluation_s: Seconds of evaluations.
        checkpoint_s: Seconds of writing checkpoints.
        tokens: Real tokens trained on.
    """

    before_s: float = 0.0
    training_s: float = 0.0
    evaluation_s: float = 0.0
    checkpoint_s: float = 0.0
    tokens: int = 0
    _start: float = field(default_factory=lambda: time.perf_counter())

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began, without the time it lay still."""
        return self.before_s + time.perf_counter() - self._start

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of training."""
        return self.tokens / self.training_s if self.training_s else 0.0

    def add(self, piece: str, seconds: float) -> None:
        """Adds seconds to an attribute."""
        setattr(self, piece, getattr(self, piece) + seconds)

    @contextmanager
    def measure(self, piece: str) -> Iterator[None]:
        """Adds the seconds of the block to an attribute."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(piece, time.perf_counter() - begun)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint: every attribute, with the time until now in ``before_s``."""
        names = (one.name for one in fields(self) if not one.name.startswith("_"))
        return {name: getattr(self, name) for name in names} | {"before_s": self.elapsed_s}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; time counts on from there.

        Raises:
            pydantic.ValidationError: The data is not as `to_dict` wrote it.
        """
        return pydantic.TypeAdapter(cls).validate_python(data)
