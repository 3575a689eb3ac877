"""Shards slots, batches and steps over a mesh; each device group has slots of its own.

Devices run in lockstep: a batch has one shape for all of them, and each sees its own part of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from altojax.device.batch import SINGLE_ROWS, Batch, Part, Samples, TokenRow, eval_parts, lay_out, need_of
from altojax.device.batch_shapes import Need, Shape
from altojax.device.collectives import ALONE, Collectives, map_paths
from altojax.device.optimizer import Hyper
from altojax.device.slots import empty_moments, keep_arrays, put_arrays, take_arrays
from altojax.device.step import SlotState
from jaxlm.data.batching.row_layout import RowGeometry
from jaxlm.devices.frozen_weight import specs_of
from jaxlm.devices.mesh import ADAPTER, MeshLayout, input_axis, on_mesh, output_axis
from jaxlm.families.config import LAYERS
from pallas_kernels.moments import Kind


class Sharding:
    """The shards of a run: slots over device groups, rows over replicas, weights over the mesh.

    Attributes:
        layout: The mesh, or None for the default device.
        slots: Slots of all groups together.
        samples: What a sample is, whose rows stay together.
    """

    def __init__(self, layout: MeshLayout | None, slots: int, samples: Samples = SINGLE_ROWS):
        """Keeps its arguments; the groups must divide `slots`."""
        self.layout, self.slots, self.samples = layout, slots, samples

    @property
    def groups(self) -> int:
        """Device groups with slots of their own."""
        return 1 if self.layout is None else self.layout.groups

    @property
    def replicas(self) -> int:
        """Devices that share the rows of each slot."""
        return 1 if self.layout is None else self.layout.replicas

    @property
    def devices(self) -> int:
        """Devices of the run."""
        return 1 if self.layout is None else self.layout.mesh.size

    @property
    def mesh(self) -> str:
        """The mesh, in words that change with it."""
        return "one device" if self.layout is None else str(self.layout)

    @property
    def own_slots(self) -> int:
        """Slots of one group."""
        return self.slots // self.groups

    @property
    def collectives(self) -> Collectives:
        """The collectives of steps."""
        return ALONE if self.layout is None else Collectives(self.layout.mesh_axes)

    def group(self, slot: int) -> int:
        """The group that a slot belongs to."""
        return slot // self.own_slots

    def deal(self, parts: Sequence[Part]) -> list[list[Part]]:
        """Returns each device's parts, group by group and replica by replica, with slots counted from 0 in each.

        A replica without rows of a part still has the part, so that all take the same optimizer steps.
        """
        dealt: list[list[Part]] = [[] for _ in range(self.groups * self.replicas)]
        for part in parts:
            group, slot = divmod(part.slot, self.own_slots)
            for replica in range(self.replicas):
                rows, keys = self._share(part.rows, replica), self._share(part.keys, replica)
                dealt[group * self.replicas + replica].append(replace(part, slot=slot, rows=rows, keys=keys))
        return dealt

    def places(
        self, parts: Sequence[Part], shape: Shape, geometry: RowGeometry
    ) -> list[tuple[int, Sequence[TokenRow], int]]:
        """Returns where rows stand among the token rows of all devices: slot, rows that follow one another, the first.

        Args:
            parts: Of a batch.
            shape: Of every device's part of it.
            geometry: Of its rows.
        """
        found: list[tuple[int, Sequence[TokenRow], int]] = []
        for device, own in enumerate(self.deal(parts)):
            at = device * shape.rows * geometry.texts
            for part in sorted(own, key=lambda part: part.slot):
                found.append((device // self.replicas * self.own_slots + part.slot, part.rows, at))
                at += len(part.rows)
        return found

    def _share[T](self, rows: Sequence[T], replica: int) -> list[T]:
        group = self.samples.group
        firsts = range(replica * group, len(rows), self.replicas * group)
        return [row for first in firsts for row in rows[first : first + group]]

    def need(self, parts: Sequence[Part], geometry: RowGeometry) -> Need:
        """Returns the need of a shape that holds the part of every device."""
        rows, targets = zip(*(need_of(own, geometry, self.samples) for own in self.deal(parts)), strict=True)
        return Need(max(rows), max(targets))

    def batch(self, parts: Sequence[Part], shape: Shape, geometry: RowGeometry, *, drops: bool) -> Batch:
        """Lays out the parts, every device's in `shape`."""
        idle = [Part(0, [], [], 0.0, begin=False, apply=False)]
        kinds: dict[str, Any] = {"drops": drops, "samples": self.samples}
        own = [lay_out(each or idle, shape, self.own_slots, geometry, **kinds) for each in self.deal(parts)]
        if self.layout is None:
            return own[0]
        whole: Batch = jax.tree.map(lambda *column: np.concatenate(column), *own)
        first = own[:: self.replicas]
        flags: Any = {flag: np.concatenate([getattr(one, flag) for one in first]) for flag in ("begin", "apply")}
        whole = whole._replace(**flags)
        return self._place(whole, _batch_specs(whole))

    def eval_batches(
        self, due: Sequence[tuple[int, Sequence[TokenRow]]], geometry: RowGeometry, most_rows: int
    ) -> list[list[Part]]:
        """Cuts validation rows into batches of at most `most_rows` rows a device; see `eval_parts`."""
        by_group: list[list[tuple[int, Sequence[TokenRow]]]] = [[] for _ in range(self.groups)]
        for slot, rows in due:
            by_group[self.group(slot)].append((slot, rows))
        cut = [eval_parts(own, geometry, most_rows * self.replicas, self.samples) for own in by_group]
        return [[part for own in batch for part in own] for batch in zip_longest(*cut, fillvalue=[])]

    def hyper(self, hyper: Hyper[np.ndarray]) -> Hyper[Array]:
        """Places every slot's hyper-parameters."""
        copies = jax.tree.map(np.copy, hyper)
        return jax.device_put(copies) if self.layout is None else self._place(copies, on_mesh("slot"))

    def zeros(self, key: str, half: str, shape: tuple[int, ...]) -> Array:
        """Returns an empty array of all slots' adapters, float32 [layer, slot, in, out], sharded as they are."""
        if self.layout is None:
            return jnp.zeros(shape, jnp.float32)
        sharding = jax.NamedSharding(self.layout.mesh, _adapter_spec((key.rpartition(".")[2], half)))
        return jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding)(shape, jnp.float32)

    def moments(self, adapters: Any, kind: Kind) -> tuple[Any, Any]:
        """Returns `altojax.device.slots.empty_moments`, sharded as adapters are: no block lies on several devices."""
        if self.layout is None:
            return empty_moments(adapters, kind)
        specs = map_paths(lambda path, _: _adapter_spec(path), adapters)
        return jax.jit(self._mapped(partial(empty_moments, kind=kind), (specs,), (specs, specs)))(adapters)

    def steps(self) -> Int[Array, " slots"]:
        """Returns a step count of 0 for every slot."""
        zeros = np.zeros(self.slots, np.int32)
        return jnp.asarray(zeros) if self.layout is None else self.layout.put(zeros, on_mesh("slot"))

    def constant(self, values: np.ndarray) -> Array:
        """Places an array whole on every device."""
        return jnp.asarray(values) if self.layout is None else self.layout.put(values, P())

    def train(self, step: Callable[..., Any], weights: Any, state: SlotState) -> Any:
        """Returns the jitted training step: (weights, state, hyper, batch) -> state, report."""
        if self.layout is None:
            return jax.jit(step, donate_argnums=1)
        specs = (self._weight_specs(weights), _state_specs(state), on_mesh("slot"))
        return jax.jit(self._inside(step, specs, (_state_specs(state), P())), donate_argnums=1)

    def evaluate(self, step: Callable[..., Any], weights: Any, state: SlotState) -> Any:
        """Returns the jitted evaluation step: (weights, adapters, hyper, batch) -> losses."""
        if self.layout is None:
            return jax.jit(step)
        specs = (self._weight_specs(weights), _state_specs(state).adapters, on_mesh("slot"))
        return jax.jit(self._inside(step, specs, P()))

    def first_slot(self, function: Callable[..., Any], weights: Any, state: SlotState) -> Any:
        """Returns a jitted function that sees the first slot: (weights, adapters, scale, tokens) -> an array."""
        if self.layout is None:
            return jax.jit(function)
        specs = (self._weight_specs(weights), _state_specs(state).adapters, P(), P())

        def mapped(*operands: Any) -> Array:
            return _from_owner(jax.lax.axis_index(ADAPTER) == 0, function(*operands))

        return jax.jit(self._mapped(mapped, specs, P()))

    def of_rows(self, function: Callable[..., Any], weights: Any, state: SlotState) -> Any:
        """Returns a jitted function of rows, each device's own: (weights, adapters, scale, rows) -> those of all."""
        if self.layout is None:
            return jax.jit(function)
        specs = (self._weight_specs(weights), _state_specs(state).adapters, on_mesh("slot"), on_mesh("row"))

        def mapped(*operands: Any) -> Any:
            return jax.tree.map(self.collectives.all_rows, function(*operands))

        return jax.jit(self._mapped(mapped, specs, P()))

    def place_rows(self, rows: Any) -> Any:
        """Places arrays whose first axis is the rows of all devices."""
        return jax.device_put(rows) if self.layout is None else self._place(rows, on_mesh("row"))

    def put(self, state: SlotState) -> Callable[[SlotState, int, SlotState], SlotState]:
        """Returns a jitted writer of a slot's placed content: (state, slot, content) -> state, which was donated."""
        if self.layout is None:
            alone = jax.jit(put_arrays, donate_argnums=0)
            return lambda state, slot, content: alone(state, jnp.int32(slot), content)
        specs = _state_specs(state)

        def put_here(state: SlotState, slot: Int[Array, ""], content: SlotState) -> SlotState:
            place, mine = self._here(slot)
            return put_arrays(state, place, content, mine)

        def put(state: SlotState, slot: Int[Array, ""], content: SlotState) -> SlotState:
            return self._mapped(put_here, (specs, P(), _content_specs(content)), specs)(state, slot, content)

        jitted = jax.jit(put, donate_argnums=0)
        return lambda state, slot, content: jitted(state, np.int32(slot), content)

    def content(self, content: SlotState) -> SlotState:
        """Places a slot's content, host arrays, on the devices for `put`."""
        return jax.device_put(content) if self.layout is None else self._place(content, _content_specs(content))

    def take(self, state: SlotState) -> Callable[[SlotState, int], SlotState]:
        """Returns a jitted reader of a slot: (state, slot) -> content, the same on all devices."""
        if self.layout is None:
            alone = jax.jit(take_arrays)
            return lambda state, slot: alone(state, jnp.int32(slot))

        def take_here(state: SlotState, slot: Int[Array, ""]) -> SlotState:
            place, mine = self._here(slot)
            return jax.tree.map(partial(_from_owner, mine), take_arrays(state, place))

        own = _content_specs(state)
        whole = jax.NamedSharding(self.layout.mesh, P())
        jitted = jax.jit(self._mapped(take_here, (_state_specs(state), P()), own), out_shardings=whole)
        return lambda state, slot: jitted(state, np.int32(slot))

    def keep(self, adapters: Any) -> Callable[[Any, Any, np.ndarray], Any]:
        """Returns a jitted copier of slots' adapters: (kept, adapters, bool [slots]) -> kept, which was donated."""
        if self.layout is None:
            return jax.jit(keep_arrays, donate_argnums=0)
        where = jax.tree.map(lambda leaf: leaf.sharding, adapters)
        jitted = jax.jit(keep_arrays, donate_argnums=0, out_shardings=where)
        return lambda kept, adapters, which: jitted(kept, adapters, self._place(which, on_mesh("slot")))

    def bytes_here(self, tree: Any) -> int:
        """Returns the bytes of one device's shards of a tree of arrays."""
        return sum(
            int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
        )

    def _here(self, slot: Int[Array, ""]) -> tuple[Array, Array]:
        """Returns a slot's place within its group, and whether that is this device's."""
        return slot % self.own_slots, slot // self.own_slots == jax.lax.axis_index(ADAPTER)

    def _inside(self, step: Callable[..., Any], specs: Any, found: Any) -> Callable[..., Any]:
        def mapped(weights: Any, state: Any, hyper: Hyper[Array], batch: Batch) -> Any:
            return self._mapped(step, (*specs, _batch_specs(batch)), found)(weights, state, hyper, batch)

        return mapped

    def _mapped(self, function: Callable[..., Any], specs: Any, found: Any) -> Callable[..., Any]:
        assert self.layout is not None
        return jax.shard_map(function, mesh=self.layout.mesh, in_specs=specs, out_specs=found, check_vma=False)

    def _place(self, tree: Any, specs: Any) -> Any:
        layout = self.layout
        assert layout is not None
        if isinstance(specs, P):
            return jax.tree.map(lambda leaf: layout.put(np.asarray(leaf), specs), tree)
        return jax.tree.map(lambda leaf, spec: layout.put(np.asarray(leaf), spec), tree, specs)

    def _weight_specs(self, weights: Any) -> Any:
        layout = self.layout
        assert layout is not None

        def spec(path: tuple[Any, ...], leaf: Array | jax.ShapeDtypeStruct) -> P:
            if path[-1] == "salt":
                return P()
            return specs_of(leaf, layout.spec(".".join(map(str, path)), stacked=str(path[0]).endswith(LAYERS)))

        return map_paths(spec, weights)


def _adapter_spec(path: tuple[Any, ...], *, slot: bool = True) -> P:
    name, half = str(path[-2]), path[-1]
    parts = (input_axis(name), None) if half == "lora_a" else (None, output_axis(name))
    return on_mesh(None, *(["slot"] if slot else []), *parts)


def _state_specs(state: SlotState) -> SlotState:
    return _specs(state, slot=True)


def _content_specs(state: SlotState) -> SlotState:
    return _specs(state, slot=False)


def _specs(state: SlotState, *, slot: bool) -> SlotState:
    def of(tree: Any) -> Any:
        return None if tree is None else map_paths(lambda path, _: _adapter_spec(path, slot=slot), tree)

    steps: Any = on_mesh("slot") if slot else P()
    means = tuple(of(mean) for mean in state.averages)
    return SlotState(of(state.adapters), of(state.mu), of(state.nu), of(state.gathered), steps, means)


def _batch_specs(batch: Batch) -> Batch:
    specs: Batch = jax.tree.map(lambda _: on_mesh("row"), batch)
    slot: Any = on_mesh("slot")
    return specs._replace(begin=slot, apply=slot)


def _from_owner(mine: Array, value: Array) -> Array:
    """Returns the value of the one group that has it, to the bit: a sum of floats would lose the sign of zero."""
    bits = jax.lax.bitcast_convert_type(value, jnp.uint32)
    found = jax.lax.psum(jnp.where(mine, bits, jnp.zeros_like(bits)), ADAPTER)
    return jax.lax.bitcast_convert_type(found, value.dtype)
