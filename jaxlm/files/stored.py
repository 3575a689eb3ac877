"""Tensors in files: their names and shapes before they are read, and the parts in which they are read."""

import math
from collections.abc import Iterator
from typing import NamedTuple

Cut = tuple[slice, ...]
"""A rectangle of a tensor: start and stop on every axis."""

PART_SIZE = 2**22
"""Numbers read at once: 8 MiB in half precision."""


class Stored(NamedTuple):
    """A tensor of a file.

    Attributes:
        key: Its name there.
        shape: Turned to `Weight.shape`.
        turned: Whether the file holds the transpose; of experts, that of each.
    """

    key: str
    shape: tuple[int, ...]
    turned: bool


def turned[T](axes: tuple[T, ...]) -> tuple[T, ...]:
    """Returns what lies along the axes of a matrix, or of each of several, for its transpose."""
    return (*axes[:-2], *axes[-2:][::-1])


def whole(shape: tuple[int, ...]) -> Cut:
    """All of a tensor."""
    return tuple(slice(0, size) for size in shape)


def parts(cut: Cut) -> Iterator[Cut]:
    """Cuts a rectangle into runs of rows of at most `PART_SIZE` numbers, or of one row where that has more."""
    rows, *rest = cut
    step = max(1, PART_SIZE // math.prod(one.stop - one.start for one in rest))
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop)), *rest
