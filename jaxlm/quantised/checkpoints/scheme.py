"""A way in which a checkpoint's matrices are quantised: which tensors a matrix is, and the packed form of it."""

from collections.abc import Callable, Collection
from typing import Any, Protocol

import numpy as np

from jaxlm.devices.frozen_weight import FrozenWeight
from jaxrun.process.errors import UserError

Tensors = Callable[[str], np.ndarray]
"""Reads a tensor by its name."""


class Scheme(Protocol):
    """A scheme, which knows no files."""

    def parts(self, key: str, known: Collection[str]) -> list[str]:
        """Returns the tensors that a weight is made of, itself among them; none where it is stored plainly.

        Args:
            key: Of the weight, such as ``model.layers.0.mlp.up_proj.weight``.
            known: The names of all tensors.
        """

    def form(self, key: str, tensors: Tensors, known: Collection[str]) -> FrozenWeight:
        """Returns a weight as shapes alone, [rows, columns]; reads no more than its description.

        Raises:
            UserError: It cannot be kept.
        """

    def read(self, key: str, tensors: Tensors, known: Collection[str]) -> FrozenWeight:
        """Returns a weight, of NumPy arrays [rows, columns].

        Raises:
            UserError: It is damaged, or cannot be kept.
        """


def columns(*arrays: np.ndarray) -> tuple[Any, ...]:
    """Returns arrays [out, in], as files have them, the other way round."""
    return tuple(np.ascontiguousarray(one.T) for one in arrays)


def sized(key: str, name: str, array: np.ndarray, size: int, kinds: Collection[Any]) -> np.ndarray:
    """Returns a tensor as it has to be.

    Args:
        key: Of the weight.
        name: What the tensor is of it.
        array: The tensor.
        size: How many numbers it should have.
        kinds: Of what dtypes.

    Raises:
        UserError: It has others, or is of another dtype.
    """
    if array.size != size or array.dtype not in kinds:
        expected = " or ".join(np.dtype(kind).name for kind in kinds)
        raise UserError(f"{key}: its {name} is {array.dtype.name} {list(array.shape)}, expected {size:,} of {expected}")
    return array
