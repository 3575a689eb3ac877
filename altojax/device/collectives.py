"""Collectives of a step over the mesh; none on a single device.

Along ``adapter`` only losses, norms and flags of slots are gathered, a few numbers each. Along ``data`` and ``tensor``
devices hold parts of the same adapters, and add up their parts of a gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from altojax.device.optimizer import Gradients, squares
from jaxlm.devices.mesh import ADAPTER, MeshAxes, input_axis, output_axis
from pallas_kernels.slot_updates import Visited


@dataclass(frozen=True)
class Collectives:
    """A device's view of the others.

    Attributes:
        mesh_axes: The mesh, or None for a device alone.
    """

    mesh_axes: MeshAxes | None = None

    def targets(self, hidden: Array, targets: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        """Returns the hidden states, and this device's part of the targets where devices have the same rows.

        Args:
            hidden: [rows, length, width].
            targets: Arrays [targets]; their number divides by the devices of ``tensor``.
        """
        if self.mesh_axes is None or self.mesh_axes.tensor is None:
            return hidden, targets
        axis = self.mesh_axes.tensor
        # In turn, so that each has its share of those that are no padding, before the padding.
        turns = tuple(one.reshape(-1, jax.lax.axis_size(axis)) for one in targets)
        own = tuple(jax.lax.dynamic_index_in_dim(one, jax.lax.axis_index(axis), 1, keepdims=False) for one in turns)
        return self.mesh_axes.enter(hidden), own

    def losses(self, losses: Float[Array, " slots"]) -> Float[Array, " slots"]:
        """Sums losses over devices that have parts of the same slots' targets."""
        if self.mesh_axes is None:
            return losses
        axes = tuple(axis for axis in (self.mesh_axes.data, self.mesh_axes.tensor) if axis is not None)
        return jax.lax.psum(losses, axes) if axes else losses

    def same_rows(self, sums: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """Sums over devices that have the same rows and parts of their targets."""
        if self.mesh_axes is None or self.mesh_axes.tensor is None:
            return sums
        return jax.lax.psum(sums, self.mesh_axes.tensor)

    @property
    def replicated(self) -> bool:
        """Whether devices have other rows of the same slots."""
        return self.mesh_axes is not None and self.mesh_axes.data is not None

    @property
    def copies(self) -> int:
        """Devices that have the same rows, so that each counts its share of what all of them compute."""
        if self.mesh_axes is None or self.mesh_axes.tensor is None:
            return 1
        return jax.lax.axis_size(self.mesh_axes.tensor)

    def all_rows(self, values: Float[Array, " rows"]) -> Float[Array, " all_rows"]:
        """Returns the values of the rows of all devices, group by group and replica by replica."""
        if self.mesh_axes is None:
            return values
        axes = (ADAPTER,) if self.mesh_axes.data is None else (ADAPTER, self.mesh_axes.data)
        return jax.lax.all_gather(values, axes, tiled=True)

    def on_all(self, flags: Bool[Array, " rows"]) -> Bool[Array, ""]:
        """Whether all flags are set on all devices, which so agree on it."""
        every = jnp.all(flags)
        if self.mesh_axes is None:
            return every
        axes = (ADAPTER, *(one for one in (self.mesh_axes.data, self.mesh_axes.tensor) if one is not None))
        return jax.lax.pmin(every.astype(jnp.int32), axes) == 1

    def gradients(self, gradients: Any) -> Any:
        """Sums gradients over devices that hold the same part of an adapter."""
        if self.mesh_axes is None or (self.mesh_axes.data is None and self.mesh_axes.tensor is None):
            return gradients
        data, tensor = self.mesh_axes.data, self.mesh_axes.tensor

        def whole(path: tuple[Any, ...], leaf: Array) -> Array:
            shared = (data, None if is_split(path) else tensor)
            axes = tuple(axis for axis in shared if axis is not None)
            return jax.lax.psum(leaf, axes) if axes else leaf

        return map_paths(whole, gradients)

    def squares(self, gradients: Gradients, visited: Visited) -> Float[Array, " slots"]:
        """Returns the sum of squares of the whole gradient of each slot that takes part."""
        if self.mesh_axes is None or self.mesh_axes.tensor is None:
            return squares(gradients, visited)
        flat = nnx.to_flat_state(gradients.stacks)
        split = nnx.from_flat_state([(path, leaf) for path, leaf in flat if is_split(path)])
        whole = nnx.from_flat_state([(path, leaf) for path, leaf in flat if not is_split(path)])
        own = jax.lax.psum(squares(gradients._replace(stacks=split), visited), self.mesh_axes.tensor)
        return squares(gradients._replace(stacks=whole), visited) + own

    def all_slots(self, values: Array) -> Array:
        """Returns the values of the slots of all groups."""
        return values if self.mesh_axes is None else jax.lax.all_gather(values, ADAPTER, tiled=True)


def is_split(path: tuple[Any, ...]) -> bool:
    """Whether devices of ``tensor`` hold different parts of an adapter's array, and not all of it.

    Args:
        path: Of the array in the adapters' state.
    """
    return input_axis(str(path[-2])) is not None if path[-1] == "lora_a" else output_axis(str(path[-2])) is not None


def map_paths(function: Callable[[tuple[Any, ...], Array], Any], state: Any) -> Any:
    """Applies a function of path and array to every array of the adapters' state."""
    flat = [(path, leaf.replace(function(path, leaf.get_value()))) for path, leaf in nnx.to_flat_state(state)]
    return nnx.from_flat_state(flat)


ALONE = Collectives()
