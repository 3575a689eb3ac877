"""Perplexity, the exponential of a loss: finite however large the loss, and as people read it."""

import math
from collections.abc import Sequence

import numpy as np

LARGEST_LOSS = 700.0
"""Most nats of which a perplexity is given, about 1e304: a number that every file and picture can hold."""


def perplexity(loss: float) -> float:
    """Returns the exponential of a mean loss in nats per target, at most that of `LARGEST_LOSS`; NaN stays NaN."""
    return math.exp(min(loss, LARGEST_LOSS))


def mean_and_deviation(losses: Sequence[float]) -> tuple[float, float]:
    """Returns mean and standard deviation (n − 1) of the perplexities of one loss or more."""
    values = np.array([perplexity(loss) for loss in losses])
    scale = float(values.max())
    if not math.isfinite(scale):
        return math.nan, math.nan
    shares = values / scale  # squares of perplexities overflow long before they do
    return float(shares.mean()) * scale, float(shares.std(ddof=min(1, len(shares) - 1))) * scale


def shown(value: float) -> str:
    """Returns a perplexity as text: ``61.02``, ``4.65e+07``, ``over 1e+300``, or ``not a number``."""
    if math.isnan(value):
        return "not a number"
    if value >= 1e300:
        return "over 1e+300"
    return f"{value:.2f}" if value < 1e6 else f"{value:.2e}"
