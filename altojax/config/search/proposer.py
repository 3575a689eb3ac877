"""Proposes configurations around those that did best, by Optuna's TPE sampler (Bergstra et al. 2011).

Of a few that it proposes one is drawn by what is known to work (`altojax.config.search.prior`): TPE, which has seen ten
or twenty trials, is better with it than alone (docs/measured/log.md).

It keeps nothing from one proposal to the next: a proposal follows from the search space, a seed, and what was tried
and how that stands. So a run that resumes proposes what it would have proposed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from altojax.config.search.space import WHOLE, Draw
from jaxrun.process.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

ASKED = 24
"""Proposals, at most, until enough are new."""
NEW = 3
"""New proposals from which one is drawn."""

Axes = Mapping[str, Sequence[Any] | Draw]


@dataclass(frozen=True)
class Tried:
    """A configuration that was tried.

    Attributes:
        values: Its value on every axis.
        standing: The share of the others that stand before it; None before it is known.
    """

    values: Mapping[str, Any]
    standing: float | None


def check_installed() -> None:
    """Checks that Optuna is installed.

    Raises:
        UserError: It is not.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(
            "search.method: refine needs optuna, which is not installed; expected `pip install 'altojax[search]'`, or "
            "method: random"
        ) from error


def good_ones(tried: Mapping[str, Tried]) -> list[str]:
    """Returns the names of those around which TPE proposes: the tenth that stands first, the best first."""
    known = {name: one.standing for name, one in tried.items() if one.standing is not None}
    return sorted(known, key=lambda name: (known[name], name))[: min(math.ceil(0.1 * len(known)), 25)]


def tpe(seed: int) -> "BaseSampler":
    """Returns Optuna's TPE sampler, which proposes from the first result on."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=1)


def proposals(axes: Axes, tried: Sequence[Tried], sampler: "BaseSampler") -> Iterator[dict[str, Any]]:
    """Yields up to `ASKED` configurations to try next, each as if those before it had been begun.

    Args:
        axes: The search space.
        tried: All that was begun; one at least has a standing.
        sampler: Of Optuna, fresh.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    varied = {name: _Axis(name, choices) for name, choices in axes.items() if _varies(choices)}
    fixed = {name: choices[0] for name, choices in axes.items() if name not in varied and not isinstance(choices, Draw)}
    fixed |= {name: choices.min for name, choices in axes.items() if name not in varied and isinstance(choices, Draw)}
    kinds = {name: axis.distribution for name, axis in varied.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    for one in tried:
        at = {name: axis.place(one.values[name]) for name, axis in varied.items()}
        state = TrialState.RUNNING if one.standing is None else TrialState.COMPLETE
        study.add_trial(create_trial(params=at, distributions=kinds, value=one.standing, state=state))
    for _ in range(ASKED):
        asked = study.ask(kinds).params
        yield fixed | {name: axis.value(asked[name]) for name, axis in varied.items()}


class _Axis:
    """An axis as Optuna sees it: numbers of a list are places in their order, other values are unlike one another."""

    def __init__(self, name: str, choices: Sequence[Any] | Draw) -> None:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        self.distribution: BaseDistribution
        self._values: list[Any] | None = None
        self._ends = (choices.min, choices.max) if isinstance(choices, Draw) else (0.0, 0.0)
        if isinstance(choices, Draw) and name in WHOLE:
            low, high = round(choices.min), round(choices.max)
            self.distribution = IntDistribution(low, high, log=choices.log)
        elif isinstance(choices, Draw):
            self.distribution = FloatDistribution(choices.min, choices.max, log=choices.log)
        elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in choices):
            self._values = sorted(set(choices))
            self.distribution = IntDistribution(0, len(self._values) - 1)
        else:
            self._values = list(choices)
            self.distribution = CategoricalDistribution(range(len(self._values)))

    def place(self, value: Any) -> Any:
        return value if self._values is None else self._values.index(value)

    def value(self, place: Any) -> Any:
        if self._values is not None:
            return self._values[place]
        return place if isinstance(place, int) else min(max(float(f"{place:.4g}"), self._ends[0]), self._ends[1])


def _varies(choices: Sequence[Any] | Draw) -> bool:
    return choices.min < choices.max if isinstance(choices, Draw) else len(choices) > 1
