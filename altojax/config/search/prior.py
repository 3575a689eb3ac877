"""The prior of a search that learns: which values of a search space are known to work for LoRA.

A learning rate of 3e-4 for bases of 3 billion parameters and more (Thinking Machines, "LoRA Without Regret", and
LoRA's own settings), 1e-3 below 1 billion, in between interpolated in the logarithms; ranks from 32 on; small batches.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from altojax.config.search.space import Draw, drawn_value

SMALL, LARGE = (1e9, 1e-3), (3e9, 3e-4)
"""Parameters of a base, and the learning rate around which its adapters are tried."""
SPREAD = math.log(3)
"""Standard deviation of the logarithm of the learning rate."""
AMPLE_RANK = 32
"""From which rank on ranks are alike."""
CANDIDATES = 64
"""Values of a range from which one is taken."""


def usual_rate(parameters: float) -> float:
    """Returns the learning rate that is known to work for a base of so many parameters."""
    (small, high), (large, low) = SMALL, LARGE
    share = math.log(min(max(parameters, small), large) / small) / math.log(large / small)
    return high * (low / high) ** share


def draws(
    axes: Mapping[str, Sequence[Any] | Draw], parameters: float, random: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Yields configurations without end, each axis drawn by itself: values as often as they are known to work.

    Args:
        axes: The search space.
        parameters: Of the base.
        random: Draws them.
    """
    while True:
        one = {}
        for name, choices in axes.items():
            values = _candidates(name, choices, random)
            weights = np.exp([log_weight(name, value, parameters) for value in values])
            one[name] = values[int(random.choice(len(values), p=weights / weights.sum()))]
        yield one


def pick(among: Sequence[Mapping[str, Any]], parameters: float, random: np.random.Generator) -> Mapping[str, Any]:
    """Draws one of some configurations, as often as its values are known to work together."""
    logs = np.array([sum(log_weight(name, value, parameters) for name, value in one.items()) for one in among])
    weights = np.exp(logs - logs.max())
    return among[int(random.choice(len(among), p=weights / weights.sum()))]


def log_weight(name: str, value: Any, parameters: float) -> float:
    """Returns the logarithm of how often a value is drawn, beside others of its axis; at most 0."""
    if name == "learning_rate":
        return -0.5 * (math.log(value / usual_rate(parameters)) / SPREAD) ** 2
    if name == "lora_rank":
        return math.log(min(1.0, value / AMPLE_RANK))
    if name in ("batch_size", "gradient_accumulation_steps"):
        return -math.log(value)
    return 0.0


def _candidates(name: str, choices: Sequence[Any] | Draw, random: np.random.Generator) -> Sequence[Any]:
    if not isinstance(choices, Draw):
        return choices
    return [drawn_value(name, choices, random) for _ in range(CANDIDATES)]
