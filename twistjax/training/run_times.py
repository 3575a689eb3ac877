"""Wall-clock times of a training, and how long the rest of it will take."""

from dataclasses import dataclass, field

from jaxrun.process.wall_times import WallTimes


@dataclass
class TrainingTimes(WallTimes):
    """Wall-clock times of a training; its tokens are those of all workers."""

    _evaluations_s: list[float] = field(default_factory=list)

    def add_evaluation(self, seconds: float) -> None:
        """Counts an evaluation."""
        self.evaluation_s += seconds
        self._evaluations_s.append(seconds)

    def left_s(self, done: int, rounds: int, evaluations: int) -> float:
        """Predicts how long the rest of the run takes, at the pace so far.

        A process compiles in its first evaluation, whose time is therefore that of no other.

        Args:
            done: Rounds done, at least one.
            rounds: To come.
            evaluations: To come.
        """
        known = self._evaluations_s[1:]
        return self.training_s / done * rounds + (sum(known) / len(known) * evaluations if known else 0.0)
