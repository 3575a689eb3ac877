"""A way in which a checkpoint's matrices are quantised: which tensors a matrix is, and the packed form of it."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import jax
import ml_dtypes
import numpy as np

from jaxlm.devices.frozen_weight import FrozenWeight
from jaxrun.process.errors import UserError

SCALES = (np.float32, np.float16, ml_dtypes.bfloat16)
"""Kinds of numbers that scales may be stored as."""


class Tensors(NamedTuple):
    """The tensors of a checkpoint by their names.

    Attributes:
        read: Reads one.
        like: Its shape and dtype, without reading it.
        known: All names.
    """

    read: Callable[[str], np.ndarray]
    like: Callable[[str], jax.ShapeDtypeStruct]
    known: Collection[str]


class Scheme(Protocol):
    """A scheme, which knows no files."""

    def parts(self, key: str, known: Collection[str]) -> list[str]:
        """Returns the tensors that a weight is made of, itself among them; none where it is stored plainly.

        Args:
            key: Of the weight, such as ``model.layers.0.mlp.up_proj.weight``.
            known: The names of all tensors.
        """

    def form(self, key: str, tensors: Tensors) -> FrozenWeight:
        """Returns a weight as shapes alone, [rows, columns]; reads no more than its description.

        Raises:
            UserError: It cannot be kept.
        """

    def read(self, key: str, tensors: Tensors) -> FrozenWeight:
        """Returns a weight, of NumPy arrays [rows, columns].

        Raises:
            UserError: It is damaged, or cannot be kept.
        """


def columns(*arrays: np.ndarray) -> tuple[Any, ...]:
    """Returns arrays [out, in], as files have them, the other way round."""
    return tuple(np.ascontiguousarray(one.T) for one in arrays)


def sized(key: str, name: str, array: Any, size: int, kinds: Collection[Any]) -> Any:
    """Returns a tensor as it has to be.

    Args:
        key: Of the weight.
        name: What the tensor is of it.
        array: The tensor, or its shape and dtype.
        size: How many numbers it should have.
        kinds: Of what dtypes.

    Raises:
        UserError: It has others, or is of another dtype.
    """
    if array.size != size or array.dtype not in kinds:
        expected = " or ".join(np.dtype(kind).name for kind in kinds)
        raise UserError(f"{key}: its {name} is {array.dtype.name} {list(array.shape)}, expected {size:,} of {expected}")
    return array
