"""Frozen matrices in the form that they are stored in: an array, or several from which a layer's matrix is computed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxrun.process.errors import UserError


class FrozenWeight(ABC):
    """A matrix in other arrays than its own: a pytree that knows no shape but those of its arrays.

    Every array is [layer, rows, columns], of experts [layer, expert, rows, columns], or that of one layer. A row stands
    for so many inputs and a column for so many outputs, or for all of them, so that a part of the matrix is the same
    part of its arrays.
    """

    @property
    def name(self) -> str:
        """What the form is called."""
        return type(self).__name__

    @abstractmethod
    def dense(self, dtype: DTypeLike) -> Float[Array, "*layer in out"]:
        """Returns the matrix, computed of the arrays."""

    @abstractmethod
    def along[T](self, inputs: T, outputs: T) -> tuple[tuple[T | None, T | None], ...]:
        """Returns what lies along rows and columns of each array, in the order of its leaves.

        Args:
            inputs: What lies along the inputs of the matrix, such as an axis of a mesh.
            outputs: Likewise of its outputs. None instead of either for an array that has one entry for all of them.
        """


type Pack = Callable[[Float[Array, "*layer in out"]], FrozenWeight]
"""A stored format: packs float32 matrices."""


def dense(weight: Any, dtype: DTypeLike) -> Array:
    """Returns a matrix in `dtype`, computed of its arrays; a weight that is an array stays as it is."""
    return weight.dense(dtype) if isinstance(weight, FrozenWeight) else weight


def dense_shape(weight: FrozenWeight) -> tuple[int, ...]:
    """Returns the shape of the matrix that packed arrays, or their shapes alone, stand for."""
    return jax.eval_shape(lambda one: one.dense(jnp.float32), weight).shape


def all_dense(tree: Any, dtype: DTypeLike) -> Any:
    """Returns a tree of weights whose matrices are arrays."""
    return jax.tree.map(lambda one: dense(one, dtype), tree, is_leaf=_is_packed)


def of_experts(key: str, each: Sequence[FrozenWeight]) -> FrozenWeight:
    """Returns the matrices of all experts of a layer as one weight, of NumPy arrays or their shapes alone.

    Args:
        key: What files call the first of them, for errors.
        each: Of every expert.

    Raises:
        UserError: They are not in one form.
    """
    kinds = {(jax.tree.structure(one), *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(one))) for one in each}
    if len(kinds) > 1:
        raise UserError(f"{key}: is not stored as the layer's other experts, expected one form for all of them")

    def join(*leaves: Any) -> Any:
        first = leaves[0]
        if isinstance(first, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((len(leaves), *first.shape), first.dtype)
        return np.stack(leaves)

    return jax.tree.map(join, *each)


def is_packed(tree: Any) -> bool:
    """Whether any weight of a tree is no array."""
    return any(map(_is_packed, jax.tree.leaves(tree, is_leaf=_is_packed)))


def map_arrays(function: Callable[[Any, tuple[Any, Any]], Any], weight: Any, inputs: Any, outputs: Any) -> Any:
    """Applies a function to each array of a matrix and to what lies along its rows and columns.

    Args:
        function: (array, (rows, columns)) -> what takes its place.
        weight: The matrix.
        inputs: What lies along its inputs.
        outputs: Likewise of its outputs.
    """
    if not isinstance(weight, FrozenWeight):
        return function(weight, (inputs, outputs))
    leaves, structure = jax.tree.flatten(weight)
    along = weight.along(inputs, outputs)
    return jax.tree.unflatten(structure, [function(*pair) for pair in zip(leaves, along, strict=True)])


def specs_of(weight: Any, spec: P) -> Any:
    """Returns how each array of a weight lies on a mesh where the weight itself would lie as `spec` says."""
    if not isinstance(weight, FrozenWeight):
        return spec
    *layers, inputs, outputs = spec
    return map_arrays(lambda _, along: P(*layers, *along), weight, inputs, outputs)


def _is_packed(weight: Any) -> bool:
    return isinstance(weight, FrozenWeight)
