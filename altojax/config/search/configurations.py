"""The configurations of a task, from its search space."""

import itertools
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pydantic

from altojax.config.search import grid, prior, proposer
from altojax.config.search.duplicates import different, draw_different
from altojax.config.search.space import NAMES, WHOLE, Draw, TrialConfig, choices_of, drawn_value, merged
from altojax.config.tune_config import MOST_TRIALS, TaskConfig, TuneConfig
from jaxrun.process.errors import UserError


def configurations(
    config: TuneConfig,
    task: TaskConfig,
    *,
    alike: Callable[[TrialConfig], Hashable] | None = None,
    tell: Callable[[str], object] = lambda line: None,
    parameters: float = prior.SMALL[0],
) -> list[TrialConfig]:
    """Returns a task's configurations, no two alike: the same list for the same config.

    Of ``method: refine`` these are the first third, then as many as it will propose, drawn all alike: they stand for
    those in estimates, and are what is left to try where no proposal is new.

    Args:
        config: The run.
        task: The task.
        alike: What two configurations have in common that come to one trial; None is all that they say.
        tell: Called with a line where there are fewer of them than were asked for.
        parameters: Of the base; what is known to work depends on them.

    Raises:
        UserError: Axes are given along with whole configurations, a range in a grid, or a range that no trial may have;
            or optuna is missing, which ``method: refine`` needs.
    """
    given = merged(config.search, task.search)
    method, trials = given.get("method", "grid"), given.get("trials")
    listed = given.get("configurations")
    where = f"task '{task.name}': search"
    axes = axes_of(config, task)
    random = np.random.Generator(np.random.Philox(seed_of(config, task)))
    key = alike or (lambda one: _said(one, config.seed))
    if listed is not None:
        if method == "refine":
            raise UserError(f"{where}.method: refine beside configurations, expected axes to propose values of")
        varied = next((name for name, choices in axes.items() if isinstance(choices, Draw) or len(choices) > 1), None)
        if varied is not None:
            raise UserError(f"{where}.{varied}: an axis beside configurations, expected one value or none")
        fixed = {name: choices[0] for name, choices in axes.items() if isinstance(choices, list)}
        return different([TrialConfig(**{**fixed, **one.model_dump(exclude_unset=True)}) for one in listed], key, tell)
    if method in ("random", "refine"):
        if trials is None:
            raise UserError(f"{where}.trials: missing, expected how many configurations method {method} draws")
        for name, choices in axes.items():
            if isinstance(choices, Draw):
                _check_range(f"{where}.{name}", name, choices)
        endless = ({n: drawn_value(n, choices, random) for n, choices in axes.items()} for _ in itertools.count())
        begin: list[TrialConfig] = []
        if method == "refine":
            proposer.check_installed()
            known = prior.draws(axes, parameters, random)
            begin = draw_different((TrialConfig(**one) for one in known), first_of(trials), key)
        drawn = itertools.chain(begin, (TrialConfig(**one) for one in endless))
        found = draw_different(drawn, trials, key)
        if len(found) < trials:
            tell(f"search.trials: {trials} asked for, {len(found)} tried: there are no more different configurations")
        return found
    lists: dict[str, list[Any]] = {}
    for name, choices in axes.items():
        if isinstance(choices, Draw):
            raise UserError(f"{where}.{name}: a range, expected a list of values in a grid, or method: random")
        lists[name] = choices
    if trials is not None and grid.size(lists) > MOST_TRIALS:
        return grid.choose(lists, trials, lambda one: TrialConfig(**one), key, random)
    every = different([TrialConfig(**one) for one in grid.combinations(lists)], key, tell)
    if trials is not None and trials < len(every):
        every = [every[i] for i in sorted(random.choice(len(every), trials, replace=False))]
    return every


def axes_of(config: TuneConfig, task: TaskConfig) -> dict[str, list[Any] | Draw]:
    """Returns the axes of a task's search space, those of one value among them."""
    given = merged(config.search, task.search)
    return {name: choices_of(name, value) for name, value in given.items() if name in TrialConfig.model_fields}


def seed_of(config: TuneConfig, task: TaskConfig, *more: int) -> np.random.SeedSequence:
    """Returns what a task's draws follow from; with a proposal's number what that follows from."""
    words = [int.from_bytes(task.name.encode()[i : i + 4], "little") for i in range(0, len(task.name), 4)]
    return np.random.SeedSequence([config.seed, *words, *more])


def refines(config: TuneConfig, task: TaskConfig) -> bool:
    """Whether a task's search proposes configurations from what it has found."""
    return merged(config.search, task.search).get("method") == "refine"


def first_of(trials: int) -> int:
    """Returns how many of a search that proposes begin it."""
    return max(1, -(-trials // 3))


def _said(one: TrialConfig, seed: int) -> Hashable:
    """Canonical text of a configuration."""
    said = {**dict(one), "lora_alpha": one.alpha, "seed": seed if one.seed is None else one.seed}
    said |= {name: frozenset(said[name]) for name in NAMES if isinstance(said[name], list)}
    if one.train_samples is not None:
        del said["num_train_epochs"]
    return tuple(said.items())


def _check_range(where: str, name: str, given: Draw) -> None:
    for end in (given.min, given.max):
        one: dict[str, Any] = {name: round(end) if name in WHOLE else end}
        try:
            TrialConfig(**one)
        except pydantic.ValidationError as error:
            raise UserError(f"{where}: given a range that reaches {end:g}: {error.errors()[0]['msg']}") from error
