"""The live table of a training: a row for each kappa and the full model, or plain lines."""

import math
from collections.abc import Sequence

from rich.console import Console

from jaxlm.models.perplexity import perplexity, shown
from jaxrun.store.records import Event, Point
from jaxrun.terminal.progress import Progress, Summary, TrialRow
from twistjax.training.run_times import TrainingTimes


class LossTable(Progress):
    """Shows losses and prints evaluations; use it as a context manager."""

    def __init__(self, console: Console, rounds: int):
        """Makes the table of a run of so many rounds."""
        super().__init__(console, race=False)
        self._rounds = rounds
        self._curves: dict[str, dict[str, list[float]]] = {}

    def report(self, events: Sequence[Event], points: Sequence[Point], number: int) -> None:
        """Takes losses in, and prints a line for each evaluation."""
        for point in points:
            if point.loss is not None:
                self._curves.setdefault(str(point.trial), {}).setdefault(point.split, []).append(point.loss)
        for event in events:
            if event.kind == "evaluation":
                shown = [f"{name} {_perplexity(loss)}" for name, loss in event.payload.items()]
                self.say(f"round {number} of {self._rounds}: perplexity {', '.join(shown)}")

    def show(self, number: int, clock: TrainingTimes, compiles: int, *, evaluations: int) -> None:
        """Updates the table after a round; so many evaluations are to come."""
        status = "completed" if number == self._rounds else "running"
        rows = [
            TrialRow(
                "",
                name,
                status,
                number,
                self._rounds,
                curve.get("train", [None])[-1],
                curve.get("validation", [None])[-1],
                [loss for loss in curve.get("validation", []) if math.isfinite(loss)],
            )
            for name, curve in sorted(self._curves.items())
        ]
        summary = Summary(
            tokens_per_s=clock.tokens_per_s or None,
            eta_s=clock.left_s(number, self._rounds - number, evaluations),
            elapsed_s=clock.elapsed_s,
            done=number,
            total=self._rounds,
            compiles=compiles,
            unit="rounds",
        )
        self.update(rows, summary)


def _perplexity(losses: float | Sequence[float]) -> str:
    values = [losses] if isinstance(losses, float) else list(losses)
    return shown(perplexity(sum(values) / len(values)))
