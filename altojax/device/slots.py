"""Put a trial into a slot, take it out, clear it: jitted, with the slot as data, so that no exchange compiles."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from altojax.device.step import SlotState

Snapshot = dict[str, Any]
"""A trial at rest on the host: {"adapters": {key: {"a": [layer, in, r], "b": [layer, r, out]}}, "mu": ..., "nu": ...,
"gathered": ... (if the trial accumulates), "averages": [...] (one a window, if any), "steps": int32 []}, all numpy
float32, trimmed to the trial's own rank."""

_HALVES = {"lora_a": "a", "lora_b": "b"}


def empty_state(adapters: Any, *, accumulates: bool, averages: int, steps: Int[Array, " slots"]) -> SlotState:
    """Returns the state of slots that hold nothing.

    Args:
        adapters: The adapters' state as split off the model, leaves [layer, slot, in, out].
        accumulates: Whether any trial accumulates gradients.
        averages: How many running averages a slot carries.
        steps: Zeros.
    """

    def zeros() -> Any:
        return jax.tree.map(jnp.zeros_like, adapters)

    means = tuple(zeros() for _ in range(averages))
    return SlotState(zeros(), zeros(), zeros(), zeros() if accumulates else None, steps, means)


def put_arrays(
    state: SlotState, slot: Int[Array, ""], content: SlotState, mine: Bool[Array, ""] | None = None
) -> SlotState:
    """Writes `content` (leaves without the slot axis) into a slot; every other slot is untouched.

    Args:
        state: Of the slots.
        slot: Which.
        content: What goes in.
        mine: Whether to write at all; None does.
    """

    def put(stack: Array, leaf: Array) -> Array:
        axis = 0 if stack.ndim == 1 else 1
        if mine is not None:
            leaf = jnp.where(mine, leaf, jax.lax.dynamic_index_in_dim(stack, slot, axis=axis, keepdims=False))
        return jax.lax.dynamic_update_index_in_dim(stack, leaf, slot, axis=axis)

    return jax.tree.map(put, state, content)


def take_arrays(state: SlotState, slot: Int[Array, ""]) -> SlotState:
    """Reads a slot: the same tree without the slot axis."""

    def take(stack: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(stack, slot, axis=0 if stack.ndim == 1 else 1, keepdims=False)

    return jax.tree.map(take, state)


def keep_arrays(kept: Any, adapters: Any, which: Bool[Array, " slots"]) -> Any:
    """Copies the adapters of some slots over those kept of them; leaves are [layer, slot, in, out]."""
    chosen = which[None, :, None, None]
    return jax.tree.map(lambda old, new: jnp.where(chosen, new, old), kept, adapters)


def fresh(
    shapes: dict[str, tuple[int, int]], layers: dict[str, tuple[int, ...]], *, total_layers: int, rank: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Returns a new adapter, which is the identity: A uniform in ±1/√in as PEFT draws it (Kaiming, a = √5), B zero.

    A depends on (seed, projection, layer, rank) alone, never on slots or neighbours.

    Args:
        shapes: Projection key -> (in_features, out_features).
        layers: Projection key -> layers that the trial adapts; others stay zero, and so untrained.
        total_layers: Layers of the model.
        rank: The trial's rank.
        seed: The trial's seed.
    """
    adapter = {}
    for key, (features, out) in shapes.items():
        a = np.zeros((total_layers, features, rank), np.float32)
        words = [int.from_bytes(key.encode().ljust(32)[:32][i : i + 4], "little") for i in range(0, 32, 4)]
        for layer in layers.get(key, ()):
            draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, layer, rank, *words])))
            a[layer] = (draw.random((features, rank), np.float32) * 2 - 1) / np.float32(np.sqrt(features))
        adapter[key] = {"a": a, "b": np.zeros((total_layers, rank, out), np.float32)}
    return adapter


def new_snapshot(adapter: dict[str, dict[str, np.ndarray]], *, accumulates: bool, averages: int = 0) -> Snapshot:
    """Returns the snapshot of a trial that has not taken a step."""

    def zeros() -> dict[str, dict[str, np.ndarray]]:
        return {
            key: {half: np.zeros(array.shape, array.dtype) for half, array in pair.items()}
            for key, pair in adapter.items()
        }

    snapshot: Snapshot = {"adapters": adapter, "mu": zeros(), "nu": zeros(), "steps": np.zeros((), np.int32)}
    if averages:
        snapshot["averages"] = [zeros() for _ in range(averages)]
    return {**snapshot, "gathered": zeros()} if accumulates else snapshot


def rank_of(snapshot: Snapshot) -> int:
    """Returns the rank of a trial's adapter."""
    return max(pair["b"].shape[1] for pair in snapshot["adapters"].values())


def to_slot(snapshot: Snapshot, like: SlotState, rank: int) -> SlotState:
    """Returns the snapshot as a slot's content, padded with zeros to the run's rank; projections it lacks are zero.

    Args:
        snapshot: Of a trial of rank <= `rank`.
        like: The stacked state, for its structure.
        rank: The run's rank.
    """

    def fill(tree: Any, stacked: Any) -> Any:
        flat = []
        for path, leaf in nnx.to_flat_state(stacked):
            array = np.zeros((leaf.shape[0], *leaf.shape[2:]), np.float32)
            pair = tree.get(_key(path))
            if pair is not None:
                part = pair[_HALVES[str(path[-1])]]
                array[:, : part.shape[1], : part.shape[2]] = part
            flat.append((path, leaf.replace(array)))
        return nnx.from_flat_state(flat)

    # A trial that does not accumulate has nothing gathered.
    gathered = None if like.gathered is None else fill(snapshot.get("gathered", {}), like.gathered)
    means = snapshot.get("averages", [{} for _ in like.averages])
    steps: Any = np.asarray(snapshot["steps"], np.int32)
    return SlotState(
        fill(snapshot["adapters"], like.adapters),
        fill(snapshot["mu"], like.mu),
        fill(snapshot["nu"], like.nu),
        gathered,
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
    return ".".join(str(part) for part in path[1:-1])
