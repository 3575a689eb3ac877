"""The device mesh: which axis of a weight is sharded over which axis of the mesh, and the collectives that follow.

Axes: ``adapter`` (slots and their rows; the frozen weights are sharded over it, too), ``data`` (rows of one slot, and
weights likewise) and ``tensor`` (heads and inner neurons). Inside `jax.shard_map` every device sees a smaller model.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxlm.devices.collectives import enter, leave
from jaxlm.devices.frozen_weight import FrozenWeight, map_arrays, specs_of
from jaxlm.devices.mesh_spec import MeshSpec
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import Weight, projections
from jaxlm.families.projections import KIND_NAMED, Features
from jaxrun.process.errors import UserError

DATA, ADAPTER, TENSOR = "data", "adapter", "tensor"
RULES: dict[str, tuple[str, ...]] = {
    "slot": (ADAPTER,),
    "row": (ADAPTER, DATA),
    "embed": (DATA, ADAPTER),
    "table": (DATA, ADAPTER, TENSOR),
    "heads": (TENSOR,),
    "inner": (TENSOR,),
}
"""Logical axis -> mesh axes."""
_REPLICATED = {"embed": None, "table": "inner"}
"""Logical axis of a sharded base -> that of one which every group of ``tensor`` holds whole."""

_SHARED_OUT: dict[Features, str | None] = {
    "hidden": None,
    "channels": None,
    "heads": "heads",
    "kv_heads": "heads",
    "neurons": "inner",
}
"""What lies along a side of a projection -> the logical axis that it is shared out along."""


@dataclass(frozen=True)
class MeshAxes:
    """The mesh as a device sees it from inside `jax.shard_map`; axes of one device are left out.

    Attributes:
        sharding: Axes that frozen weights are gathered over; none where each group holds the base whole.
        tensor: The axis that heads and inner neurons lie on, or None.
        data: The axis that rows of a slot lie on, or None.
    """

    sharding: tuple[str, ...]
    tensor: str | None
    data: str | None

    @property
    def gathers(self) -> bool:
        """Whether a layer's weights are made of parts before they are used."""
        return bool(self.sharding) or self.tensor is not None

    def enter(self, x: Array) -> Array:
        """Goes before projections whose columns are shared out; see `jaxlm.devices.collectives`."""
        return x if self.tensor is None else enter(x, self.tensor)

    def leave(self, y: Array) -> Array:
        """Goes behind a projection whose rows are shared out."""
        return y if self.tensor is None else leave(y, self.tensor)

    def layer(self, shards: nnx.State) -> nnx.State:
        """Gathers one layer's weights, of which this device holds a part."""
        flat = []
        for path, variable in nnx.to_flat_state(shards):
            name, kind = str(path[-2]), str(path[-1])
            value = variable.get_value()
            if kind == "kernel":
                value = map_arrays(self._gather_matrix, value, *logical_axes(f"{name}.kernel"))
            elif kind == "bias" and self.tensor is not None and input_axis(name) is not None:
                # Every device adds its part of the product; one of them adds the bias.
                value = jnp.where(jax.lax.axis_index(self.tensor) == 0, value, jnp.zeros_like(value))
            flat.append((path, variable.replace(value)))
        return nnx.from_flat_state(flat)

    def table(self, shard: Array) -> Array:
        """Gathers an embedding table or the output head."""
        return self._gather(shard, (*self.sharding, *(() if self.tensor is None else (self.tensor,))), 1)

    def _gather_matrix(self, value: Array, along: tuple[str | None, str | None]) -> Array:
        # Rows and columns are the last two axes: before them a matrix of experts has one for these.
        return self._gather(value, self.sharding, value.ndim - 2 + along.index("embed")) if "embed" in along else value

    @staticmethod
    def _gather(value: Array, axes: tuple[str, ...], axis: int) -> Array:
        return jax.lax.all_gather(value, axes, axis=axis, tiled=True) if axes else value


@dataclass(frozen=True)
class MeshLayout:
    """A model on a mesh.

    Attributes:
        mesh: Devices by data, adapter and tensor.
        config: The whole model's.
        shards_base: Whether frozen weights are sharded over data and adapter, too, and gathered where they are used.
    """

    mesh: Mesh
    config: ModelConfig
    shards_base: bool = True

    def __post_init__(self) -> None:
        """Checks that the mesh divides the model.

        Raises:
            UserError: It does not.
        """
        shape, config = self.mesh.shape, self.config
        tensor, everyone = shape[TENSOR], self.mesh.size
        if tensor & (tensor - 1):
            raise UserError(f"mesh.tensor: given {tensor}, expected a power of two")
        fused = [one.hf.rpartition(".")[2] for one in projections(config).values() if len(one.outputs) > 1]
        if tensor > 1 and fused:
            raise UserError(
                f"mesh.tensor: given {tensor}, expected 1 for a model whose {fused[0]} is several projections"
            )
        if tensor > 1 and config.wide_qk_norm:
            raise UserError(
                f"mesh.tensor: given {tensor}, expected 1 for a model that norms all heads' queries together "
                f"({config.family})"
            )
        for _, _, own in config.stacks:
            for name, count in {"key heads": own.num_kv_heads, "inner neurons": own.intermediate_size}.items():
                if count % tensor:
                    raise UserError(f"mesh.tensor: given {tensor}, expected a divisor of the model's {count} {name}")
        if self.shards_base and config.hidden_size % everyone:
            raise UserError(
                f"mesh: given {self}, {everyone} devices, expected a divisor of the model's width of "
                f"{config.hidden_size}"
            )

    def __str__(self) -> str:
        """The sizes of its axes, as a config says them."""
        sizes = ", ".join(f"{name}: {self.mesh.shape[name]}" for name in (ADAPTER, TENSOR, DATA))
        return f"{sizes}, shard_base: {str(self.shards_base).lower()}"

    @property
    def groups(self) -> int:
        """Device groups, each of which has its own slots."""
        return self.mesh.shape[ADAPTER]

    @property
    def replicas(self) -> int:
        """Devices that share a slot's rows."""
        return self.mesh.shape[DATA]

    @property
    def tensor(self) -> int:
        """Devices that share heads and inner neurons."""
        return self.mesh.shape[TENSOR]

    @property
    def mesh_axes(self) -> MeshAxes:
        """The mesh axes as the model's code sees them."""
        wide = {name for name, size in self.mesh.shape.items() if size > 1}
        sharding = tuple(name for name in RULES["embed"] if name in wide and self.shards_base)
        return MeshAxes(sharding, TENSOR if TENSOR in wide else None, DATA if DATA in wide else None)

    @property
    def local_config(self) -> ModelConfig:
        """Shapes of the model that one device computes."""
        shared = ("num_heads", "num_kv_heads", "intermediate_size")

        def own(changes: Iterable[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
            return tuple((name, value // self.tensor if name in shared else value) for name, value in changes)

        others = tuple(replace(one, changes=own(one.changes)) for one in self.config.others)
        whole = own((name, getattr(self.config, name)) for name in shared)
        return replace(self.config, **dict(whole), others=others)

    def spec(self, path: str, *, stacked: bool) -> P:
        """Returns the sharding of a weight.

        Args:
            path: As `jaxlm.families.names.Weight` has it, such as ``layers.self_attn.q_proj.kernel``.
            stacked: Whether layers come first.
        """
        axes = logical_axes(path)
        if not self.shards_base:
            axes = tuple(_REPLICATED.get(axis, axis) if axis is not None else None for axis in axes)
        return on_mesh(*([None] if stacked else []), *axes)

    def placement(self, weight: Weight) -> NamedSharding:
        """Returns where a weight goes, for `jaxlm.files.weights.load_model`."""
        return NamedSharding(self.mesh, self.spec(weight.path, stacked=weight.layers is not None))

    def check_packed(self, forms: Mapping[str, FrozenWeight]) -> None:
        """Refuses packed matrices of which devices would hold parts of blocks.

        Args:
            forms: By `Weight.path`, leaves [layer, rows, columns].

        Raises:
            UserError: There is one.
        """
        for path, form in forms.items():
            specs = jax.tree.leaves(specs_of(form, self.spec(path, stacked=True)))
            for array, spec in zip(jax.tree.leaves(form), specs, strict=True):
                for size, axes in zip(array.shape[1:], spec[1:], strict=True):
                    names = (axes,) if isinstance(axes, str) else axes or ()
                    devices = math.prod(self.mesh.shape[name] for name in names)
                    if size % devices:
                        whole = self.shards_base and TENSOR not in names
                        raise UserError(
                            f"mesh: given {self}: {devices} devices would share {path}, of which {size} parts are "
                            f"packed by themselves, expected a divisor of them{', or shard_base: false' * whole}"
                        )

    def put(self, value: np.ndarray, spec: P) -> jax.Array:
        """Places what every process of the run has whole."""
        return jax.make_array_from_callback(value.shape, NamedSharding(self.mesh, spec), lambda index: value[index])


def make_layout(spec: MeshSpec | Mapping[str, Any], config: ModelConfig) -> MeshLayout:
    """Returns a model's layout on the devices of all processes.

    Raises:
        UserError: The mesh asks for other than all devices, or does not divide the model.
    """
    given = spec if isinstance(spec, MeshSpec) else MeshSpec(**spec)
    devices = jax.devices()
    if min(1 if given.adapter is None else given.adapter, given.tensor, given.data) < 1:
        raise UserError(f"mesh: given {given.model_dump()}, expected numbers from 1 up")
    rest = given.tensor * given.data
    adapter = max(len(devices) // rest, 1) if given.adapter is None else given.adapter
    wanted = adapter * rest
    if wanted > len(devices) or (wanted < len(devices) and jax.process_count() > 1):
        raise UserError(
            f"mesh: given adapter: {adapter}, tensor: {given.tensor}, data: {given.data}, which is {wanted} devices, "
            f"expected {'at most ' if jax.process_count() == 1 else ''}{len(devices)}"
        )
    shape = (given.data, adapter, given.tensor)
    mesh = jax.make_mesh(shape, (DATA, ADAPTER, TENSOR), axis_types=(AxisType.Auto,) * 3, devices=devices[:wanted])
    return MeshLayout(mesh, config, given.shard_base is not False)


def logical_axes(path: str) -> tuple[str | None, ...]:
    """Returns the logical axes of a weight's dimensions, the layer's left out."""
    *owners, name, kind = path.split(".")
    if owners and owners[-1] == "experts":
        return (None, *logical_axes(f"{name}.{kind}"))
    if kind == "embedding":
        return (None, "table")
    if kind == "sinks":
        return ("heads",)
    rows, columns = input_axis(name), output_axis(name)
    if kind == "kernel":
        return ("embed", columns) if rows is None else (rows, "embed")
    return (columns,) if kind == "bias" else (None,)


def on_mesh(*axes: str | None) -> P:
    """Returns the partition of an array whose dimensions are these logical axes.

    Raises:
        ValueError: Two dimensions would lie on one axis of the mesh.
    """
    taken: list[str] = []
    for axis in axes:
        for one in RULES[axis] if axis is not None else ():
            if one in taken:
                raise ValueError(f"dimensions {axes}: two of them lie on mesh axis {one}")
            taken.append(one)
    return P(*(None if axis is None else RULES[axis] for axis in axes))


def input_axis(projection: str) -> str | None:
    """Returns the logical axis that a projection's inputs are shared out along, if they are."""
    kind = KIND_NAMED.get(projection.rpartition(".")[2])
    return None if kind is None else _SHARED_OUT[kind.inputs]


def output_axis(projection: str) -> str | None:
    """Returns the logical axis that a projection's outputs are shared out along, if they are."""
    kind = KIND_NAMED.get(projection.rpartition(".")[2])
    return None if kind is None else _SHARED_OUT[kind.outputs[0]]
