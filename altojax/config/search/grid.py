"""Grids: every combination of the values of some axes, or a random choice of them; counted before any is made."""

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from altojax.config.search.duplicates import draw_different

Axes = Mapping[str, Sequence[Any]]


def size(axes: Axes) -> int:
    """Returns how many combinations there are."""
    return math.prod(map(len, axes.values()))


def combinations(axes: Axes) -> Iterator[dict[str, Any]]:
    """Yields every combination, the last axis fastest."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def choose[T](
    axes: Axes,
    count: int,
    make: Callable[[dict[str, Any]], T],
    key: Callable[[T], Hashable],
    random: np.random.Generator,
) -> list[T]:
    """Returns a random choice of the combinations, in the grid's order; the grid itself is never built.

    Args:
        axes: The grid.
        count: How many.
        make: Makes one of a combination.
        key: What two of them have in common that are not chosen both.
        random: Draws them.
    """

    def drawn() -> Iterator[tuple[list[int], T]]:
        while True:
            places = [int(random.integers(len(values))) for values in axes.values()]
            yield places, make({name: axes[name][place] for name, place in zip(axes, places, strict=True)})

    chosen = draw_different(drawn(), count, lambda one: key(one[1]))
    return [one for _, one in sorted(chosen, key=lambda one: one[0])]


def count_text(count: int) -> str:
    """Returns a number of combinations for a message, in few characters however many there are."""
    return f"{count:,}" if count < 10**12 else f"some 10^{int(math.log10(count))}"
