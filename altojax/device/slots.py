"""Put a trial into a slot, take it out, park it, clear it: jitted, with the slot as data: no exchange compiles."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from altojax.device.collectives import map_paths
from altojax.device.step import SlotState
from jaxlm.families.config import LAYERS
from jaxlm.families.names import Projection
from pallas_kernels.moments import Blocks, Kind, kept, read, zeros

Snapshot = dict[str, Any]
"""A trial at rest on the host: {"adapters": {key: {"a": [layer, in, r], "b": [layer, r, out]}}, "mu": ..., "nu": ...,
"gathered": ... (if the trial accumulates), "averages": [...] (one a window, if any), "steps": int32 []}, all numpy
float32, trimmed to the trial's own rank, however the device keeps moments. What is missing is zero."""

_HALVES = {"lora_a": "a", "lora_b": "b"}
_RANK_AXIS = {"lora_a": 1, "lora_b": 0}


def empty_state(
    adapters: Any, moments: tuple[Any, Any], *, accumulates: bool, averages: int, steps: Int[Array, " slots"]
) -> SlotState:
    """Returns the state of slots that hold nothing.

    Args:
        adapters: The adapters' state as split off the model, leaves [layer, slot, in, out].
        moments: `empty_moments` of them.
        accumulates: Whether any trial accumulates gradients.
        averages: How many running averages a slot carries.
        steps: Zeros.
    """

    def zeros() -> Any:
        return jax.tree.map(jnp.zeros_like, adapters)

    means = tuple(zeros() for _ in range(averages))
    return SlotState(zeros(), *moments, zeros() if accumulates else None, steps, means)


def empty_moments(adapters: Any, kind: Kind) -> tuple[Any, Any]:
    """Returns the first and second moments of adapters that have not begun."""

    def of(signed: bool) -> Any:
        return map_paths(lambda path, leaf: zeros(leaf, _RANK_AXIS[str(path[-1])], kind, signed=signed), adapters)

    return of(True), of(False)


class ParkingPlaces:
    """Places beside the slots, on the device, for trials at rest, each with the best adapter of its trial.

    They are made once: arrays that came and went with trials would leave gaps in the device's memory, in none of which
    the next step has room.
    """

    def __init__(self, slots: SlotState, kept: Any, places: int):
        """Makes so many places.

        Args:
            slots: The state of the slots, which lie on one device.
            kept: The best adapters of their trials.
            places: How many.
        """

        def empty(leaf: Array) -> Array:
            axis = _slot_axis(leaf)
            return jnp.zeros((*leaf.shape[:axis], places, *leaf.shape[axis + 1 :]), leaf.dtype)

        self._state, self._kept = jax.tree.map(empty, (slots, kept))
        self._copy, self._take = jax.jit(copy_slot, donate_argnums=0), jax.jit(take_arrays)

    def park(self, place: int, slots: SlotState, kept: Any, slot: int) -> None:
        """Copies the trial in `slot`, and the adapter kept of it, to a place."""
        self._state, self._kept = self._copy(
            (self._state, self._kept), (slots, kept), jnp.int32(place), jnp.int32(slot)
        )

    def resume(self, place: int, slots: SlotState, kept: Any, slot: int) -> tuple[SlotState, Any]:
        """Returns the slots and what is kept of them, both donated, with the trial of a place in `slot`."""
        found: tuple[SlotState, Any] = self._copy(
            (slots, kept), (self._state, self._kept), jnp.int32(slot), jnp.int32(place)
        )
        return found

    def take(self, place: int, rank: int, keys: tuple[str, ...], *, gathers: bool = True) -> Snapshot:
        """Copies the trial of a place to the host; arguments as of `Executor.take`."""
        content = self._take(self._state, jnp.int32(place))
        return to_snapshot(content if gathers else content._replace(gathered=None), rank, keys)

    def kept(self, place: int, rank: int, keys: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
        """Copies the best adapter of a place's trial to the host."""
        found = self._take(self._state._replace(adapters=self._kept), jnp.int32(place)).adapters
        return adapter_of(jax.device_get(found), rank, keys)


def copy_slot[Tree](into: Tree, source: Any, to: Int[Array, ""], at: Int[Array, ""]) -> Tree:
    """Copies the place `at` of the source's stacks to the place `to` of stacks alike, of any number of places."""
    copied: Tree = jax.tree.map(partial(_copied, to=to, at=at), into, source)
    return copied


def _copied(stack: Array, source: Array, to: Int[Array, ""], at: Int[Array, ""]) -> Array:
    axis = _slot_axis(stack)
    one = jax.lax.dynamic_index_in_dim(source, at, axis=axis, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(stack, one, to, axis=axis)


def _slot_axis(stack: Array) -> int:
    """Returns the axis of slots: the steps have no other, all else has layers first."""
    return 0 if stack.ndim == 1 else 1


def put_arrays(
    state: SlotState, slot: Int[Array, ""], content: SlotState, mine: Bool[Array, ""] | None = None
) -> SlotState:
    """Writes `content` (float32 leaves without the slot axis) into a slot; every other slot is untouched.

    Args:
        state: Of the slots.
        slot: Which.
        content: What goes in; arrays that it lacks are zero.
        mine: Whether to write at all; None does.
    """

    def put(stack: Array, leaf: Array) -> Array:
        axis = _slot_axis(stack)
        if mine is not None:
            leaf = jnp.where(mine, leaf, jax.lax.dynamic_index_in_dim(stack, slot, axis=axis, keepdims=False))
        return jax.lax.dynamic_update_index_in_dim(stack, leaf, slot, axis=axis)

    def put_all(stacks: Any, tree: Any) -> Any:
        given = {} if tree is None else dict(nnx.to_flat_state(tree))
        flat = []
        for path, leaf in nnx.to_flat_state(stacks):
            stack = leaf.get_value()
            first = stack.codes if isinstance(stack, Blocks) else stack
            new = given[path].get_value() if path in given else jnp.zeros((first.shape[0], *first.shape[2:]))
            flat.append((path, leaf.replace(jax.tree.map(put, stack, kept(new, stack)))))
        return nnx.from_flat_state(flat)

    return SlotState(
        put_all(state.adapters, content.adapters),
        put_all(state.mu, content.mu),
        put_all(state.nu, content.nu),
        None if state.gathered is None else put_all(state.gathered, content.gathered),
        put(state.steps, content.steps),
        tuple(put_all(stacks, tree) for stacks, tree in zip(state.averages, content.averages, strict=True)),
    )


def take_arrays(state: SlotState, slot: Int[Array, ""]) -> SlotState:
    """Reads a slot: the same tree without the slot axis, moments in float32."""

    def take(stack: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(stack, slot, axis=_slot_axis(stack), keepdims=False)

    content = jax.tree.map(take, state)
    mu, nu = (map_paths(lambda _, leaf: read(leaf), one) for one in (content.mu, content.nu))
    return content._replace(mu=mu, nu=nu)


def keep_arrays(kept: Any, adapters: Any, which: Bool[Array, " slots"]) -> Any:
    """Copies the adapters of some slots over those kept of them; leaves are [layer, slot, in, out]."""
    chosen = which[None, :, None, None]
    return jax.tree.map(lambda old, new: jnp.where(chosen, new, old), kept, adapters)


def fresh(sites: Mapping[str, Projection], layers: Mapping[str, tuple[int, ...]], rank: int, *, seed: int) -> Snapshot:
    """Returns a trial that has not begun: A uniform in ±1/√in as PEFT draws it (Kaiming, a = √5), B and all else zero.

    A depends on (seed, projection, layer, rank) alone, never on slots or neighbours.

    Args:
        sites: The projections that the trial adapts, by key.
        layers: Projection key -> layers that it adapts; others stay zero, and so untrained.
        rank: The trial's rank.
        seed: The trial's seed.
    """
    adapter = {}
    for key, site in sites.items():
        a = np.zeros((len(site.layers), site.in_features, rank), np.float32)
        name = site.inside.encode().ljust(32)[:32]
        words = [int.from_bytes(name[i : i + 4], "little") for i in range(0, 32, 4)]
        for layer in layers.get(key, ()):
            draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, layer, rank, *words])))
            drawn = draw.random((site.in_features, rank), np.float32)
            a[site.layers.index(layer)] = (drawn * 2 - 1) / np.float32(np.sqrt(site.fan_in))
        adapter[key] = {"a": a}
    return {"adapters": adapter, "steps": np.zeros((), np.int32)}


def empty_snapshot(sites: Mapping[str, Projection], rank: int, *, accumulates: bool, averages: int) -> Snapshot:
    """Returns a snapshot of zeros in which nothing is missing.

    Args:
        sites: The projections that the trial adapts, by key.
        rank: The trial's rank.
        accumulates: Whether it gathers gradients.
        averages: Its running averages.
    """

    def zeros() -> dict[str, dict[str, np.ndarray]]:
        return {key: dict(zip("ab", site.empty_adapter(rank), strict=True)) for key, site in sites.items()}

    snapshot: Snapshot = {"adapters": zeros(), "mu": zeros(), "nu": zeros(), "steps": np.zeros((), np.int32)}
    if averages:
        snapshot["averages"] = [zeros() for _ in range(averages)]
    return {**snapshot, "gathered": zeros()} if accumulates else snapshot


def rank_of(snapshot: Snapshot) -> int:
    """Returns the rank of a trial's adapter."""
    return max((pair["a"].shape[2] for pair in snapshot["adapters"].values()), default=0)


def to_slot(snapshot: Snapshot, like: SlotState, rank: int) -> SlotState:
    """Returns the snapshot as a slot's content, padded with zeros to the run's rank.

    It lacks moments, averages and halves of adapters that the snapshot lacks of all projections.

    Args:
        snapshot: Of a trial of rank <= `rank`.
        like: The stacked state, for its structure.
        rank: The run's rank.
    """

    def fill(tree: Any, stacked: Any) -> Any:
        flat = []
        halves = {half for pair in tree.values() for half in pair}
        for path, leaf in nnx.to_flat_state(stacked):
            half = _HALVES[str(path[-1])]
            if half not in halves:
                continue
            # A projection that the trial does not adapt is there too: what is put is of few kinds, compiled once each.
            nothing = np.zeros((leaf.shape[0], *leaf.shape[2:]), np.float32)
            array = np.asarray(tree.get(_key(path), {}).get(half, nothing), np.float32)
            wider = [(0, 0)] * 3
            wider[2 if path[-1] == "lora_a" else 1] = (0, rank - array.shape[2 if path[-1] == "lora_a" else 1])
            flat.append((path, leaf.replace(np.pad(array, wider) if any(map(any, wider)) else array)))
        return nnx.from_flat_state(flat)

    def of(name: str, stacked: Any) -> Any:
        return fill(snapshot.get(name, {}), stacked)

    means = snapshot.get("averages", [{} for _ in like.averages])
    steps: Any = np.asarray(snapshot["steps"], np.int32)
    return SlotState(
        of("adapters", like.adapters),
        of("mu", like.adapters),
        of("nu", like.adapters),
        None if like.gathered is None else of("gathered", like.adapters),
        steps,
        tuple(fill(mean, stacked) for mean, stacked in zip(means, like.averages, strict=True)),
    )


def to_snapshot(content: SlotState, rank: int, keys: tuple[str, ...]) -> Snapshot:
    """Returns a slot's content on the host, trimmed to the trial's rank and to the projections it adapts."""

    def read(tree: Any) -> dict[str, dict[str, np.ndarray]]:
        return adapter_of(tree, rank, keys)

    host = jax.device_get(content)
    snapshot: Snapshot = {"adapters": read(host.adapters), "mu": read(host.mu), "nu": read(host.nu)}
    snapshot["steps"] = np.asarray(host.steps, np.int32)
    if host.averages:
        snapshot["averages"] = [read(mean) for mean in host.averages]
    return snapshot if host.gathered is None else {**snapshot, "gathered": read(host.gathered)}


def adapter_of(tree: Any, rank: int, keys: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
    """Returns {key: {"a": [layer, in, rank], "b": [layer, rank, out]}} copied from one slot's state."""
    adapter: dict[str, dict[str, np.ndarray]] = {key: {} for key in keys}
    for path, leaf in nnx.to_flat_state(tree):
        key, half = _key(path), _HALVES[str(path[-1])]
        if key in adapter:
            array = np.asarray(leaf[...])
            adapter[key][half] = np.array(array[:, :, :rank] if half == "a" else array[:, :rank])
    return adapter


def _key(path: tuple[Any, ...]) -> str:
    """('layers', 'self_attn', 'q_proj', 'lora_a') -> 'self_attn.q_proj'."""
    return ".".join(map(str, path[:-1])).removeprefix(f"{LAYERS}.")
