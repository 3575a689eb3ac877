"""Tensors in files: their names and shapes before they are read, what reads them, and the parts in which it does."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from jaxlm.devices.frozen_weight import FrozenWeight
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import Weight

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


def is_part(cut: Cut) -> bool:
    """Whether a rectangle has at most `PART_SIZE` numbers."""
    return math.prod(one.stop - one.start for one in cut) <= PART_SIZE


class WeightSource(Protocol):
    """A model on disk.

    Attributes:
        where: Its file or folder.
        config: Its shapes.
        dequantises: Whether `read` gives the numbers of matrices that have a form, which then need not stay in it.
    """

    where: Path
    config: ModelConfig
    dequantises: bool

    def missing(self, wanted: Iterable[Weight]) -> tuple[list[str], list[str]]:
        """Keys that `wanted` needs and the files lack; keys that the files hold and nothing needs."""

    def find(self, weight: Weight, layer: int) -> Stored:
        """Looks a tensor up without reading it."""

    def form(self, weight: Weight, layer: int) -> FrozenWeight | None:
        """Returns the packed form of a layer's matrix as shapes alone, [rows, columns]; None where it is no such."""

    def packed(self, weight: Weight, layer: int) -> FrozenWeight:
        """Reads a layer's matrix that has a form; arrays are NumPy's."""

    def read(self, weight: Weight, layer: int, cut: Cut) -> np.ndarray:
        """Reads a part of a tensor as it is in the file; `cut` has a slice for each axis there."""
