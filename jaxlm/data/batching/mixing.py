"""Sources in shares: how often each row comes in an epoch."""

import math
from collections.abc import Sequence

from jaxlm.data.batching.order import order


def weighted_counts(rows: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Returns how many samples of an epoch each source gives.

    They are as the weights to each other, and as few as they can be with every row among them.

    Args:
        rows: Rows of each source.
        weights: Its share, as against the others; above 0.
    """
    scale = max(n / weight for n, weight in zip(rows, weights, strict=True))
    return [max(n, math.floor(scale * weight + 0.5)) if n else 0 for n, weight in zip(rows, weights, strict=True)]


def repetitions(rows: int, samples: int, seed: int) -> list[int]:
    """Returns how often each row of a source comes: equally often, and a fixed random choice of them once more.

    Args:
        rows: Rows of the source.
        samples: What it gives to an epoch.
        seed: Of the choice.
    """
    if not rows:
        return []
    each, more = divmod(samples, rows)
    again = set(order(rows, seed, 2)[:more].tolist())
    return [each + (row in again) for row in range(rows)]
