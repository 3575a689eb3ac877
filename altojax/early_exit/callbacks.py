"""Callbacks of a run's caller: each sees every evaluation, may add numbers of its own, and may end the trial."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from jaxrun.process.errors import UserError
from jaxrun.terminal.printable import one_line


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one trial. Losses are in nats per target token.

    Attributes:
        task: The task's name.
        trial: The trial's name, which no other of the task has.
        settings: Its hyper-parameters, by the keys of ``search``.
        step: Optimizer steps done.
        samples: Training samples seen.
        fraction: Share of its schedule that is done, 1 at its end.
        train_loss: Mean of its steps since the evaluation before.
        val_loss: Over the task's validation rows.
        best_loss: Of the adapter that is the trial's result so far, this evaluation included.
        base_loss: Of the base without an adapter, over the same rows, by the same loss; nan where that of the trial was
            not known yet when the base was measured.
        metrics: What the caller's metric made of it; empty where there is none.
    """

    task: str
    trial: str
    settings: Mapping[str, Any]
    step: int
    samples: int
    fraction: float
    train_loss: float
    val_loss: float
    best_loss: float
    base_loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


Callback = Callable[[Evaluation], str | None]
"""Sees an evaluation; returns why the trial ends, or None where it goes on."""
Metric = Callable[[Evaluation], Mapping[str, float]]
"""Makes numbers of an evaluation, each with a name."""


@dataclass(frozen=True)
class Observers:
    """The caller's own code in a run.

    Attributes:
        callbacks: All see every evaluation, in order; the first that says why ends the trial.
        metric: Comes before them, which see what it made.
    """

    callbacks: Sequence[Callback] = ()
    metric: Metric | None = None

    @classmethod
    def of(cls, callbacks: Any, metric: Any) -> Self:
        """Checks what a caller gave.

        Raises:
            UserError: Callbacks are no list of functions, or the metric is no function.
        """
        if not isinstance(callbacks, Sequence) or not all(callable(one) for one in callbacks):
            raise UserError(f"callbacks: given {callbacks!r:.70}, expected a list of functions")
        if metric is not None and not callable(metric):
            raise UserError(f"metric: given {metric!r:.70}, expected a function, or None")
        return cls(tuple(callbacks), metric)

    def __bool__(self) -> bool:
        return bool(self.callbacks) or self.metric is not None

    def measured(self, evaluation: Evaluation) -> Evaluation:
        """Returns an evaluation with what the metric makes of it.

        Raises:
            UserError: That is no dict of numbers, or one has the name of a field.
        """
        if self.metric is None:
            return evaluation
        said: Any = self.metric(evaluation)
        if not isinstance(said, Mapping):
            raise UserError(f"metric: returned {said!r:.70}, expected a dict of numbers by name")
        for name, value in said.items():
            if not isinstance(name, str) or name in Evaluation.__dataclass_fields__:
                raise UserError(f"metric: named a number {name!r:.70}, expected a name that no field of Evaluation has")
            if not isinstance(value, int | float) and getattr(value, "shape", None) != ():  # that of a NumPy number
                raise UserError(f"metric: {name}: returned {value!r:.70}, expected a number")
        return replace(evaluation, metrics={name: float(value) for name, value in said.items()})

    def verdict(self, evaluation: Evaluation) -> str | None:
        """Shows an evaluation to all callbacks; returns why the first ends the trial that does, or None.

        Raises:
            UserError: A callback returned neither a text nor None.
        """
        reasons = [_reason(callback, callback(evaluation)) for callback in self.callbacks]
        return next((reason for reason in reasons if reason is not None), None)


NOBODY = Observers()


def _reason(callback: Callback, said: Any) -> str | None:
    if said is None:
        return None
    if not isinstance(said, str) or not said.strip():
        name = getattr(callback, "__name__", type(callback).__name__)
        raise UserError(f"callback {name}: returned {said!r:.70}, expected None, or a text that says why a trial ends")
    return one_line(said)
