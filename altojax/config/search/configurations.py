"""The configurations of a task, from its search space."""

import itertools
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pydantic

from altojax.config.search import grid
from altojax.config.search.duplicates import different, draw_different
from altojax.config.search.space import WHOLE, Draw, TrialConfig, choices_of, drawn_value, merged
from altojax.config.tune_config import MOST_TRIALS, TaskConfig, TuneConfig
from jaxrun.process.errors import UserError


def configurations(
    config: TuneConfig,
    task: TaskConfig,
    *,
    alike: Callable[[TrialConfig], Hashable] | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> list[TrialConfig]:
    """Returns a task's configurations, no two alike: the same list for the same config.

    Args:
        config: The run.
        task: The task.
        alike: What two configurations have in common that come to one trial; None is all that they say.
        tell: Called with a line where there are fewer of them than were asked for.

    Raises:
        UserError: Axes are given along with whole configurations, a range in a grid, or a range that no trial may have.
    """
    given = merged(config.search, task.search)
    method, trials = given.pop("method", "grid"), given.pop("trials", None)
    listed = given.pop("configurations", None)
    where = f"task '{task.name}': search"
    axes = {name: choices_of(name, value) for name, value in given.items()}
    words = [int.from_bytes(task.name.encode()[i : i + 4], "little") for i in range(0, len(task.name), 4)]
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, *words])))
    key = alike or (lambda one: _said(one, config.seed))
    if listed is not None:
        varied = next((name for name, choices in axes.items() if isinstance(choices, Draw) or len(choices) > 1), None)
        if varied is not None:
            raise UserError(f"{where}.{varied}: an axis beside configurations, expected one value or none")
        fixed = {name: choices[0] for name, choices in axes.items() if isinstance(choices, list)}
        return different([TrialConfig(**{**fixed, **one.model_dump(exclude_unset=True)}) for one in listed], key, tell)
    if method == "random":
        if trials is None:
            raise UserError(f"{where}.trials: missing, expected how many configurations method random draws")
        for name, choices in axes.items():
            if isinstance(choices, Draw):
                _check_range(f"{where}.{name}", name, choices)
        endless = ({n: drawn_value(n, choices, random) for n, choices in axes.items()} for _ in itertools.count())
        found = draw_different((TrialConfig(**one) for one in endless), trials, key)
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


def _said(one: TrialConfig, seed: int) -> Hashable:
    """Canonical text of a configuration."""
    said = {**dict(one), "lora_alpha": one.alpha, "seed": seed if one.seed is None else one.seed}
    if not isinstance(one.target_modules, str):
        said["target_modules"] = frozenset(one.target_modules)
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
