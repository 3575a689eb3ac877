"""Weights from files onto devices, a shard at a time, of which never more than a part is in between."""

import contextlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxlm.families.names import Weight
from jaxlm.files.stored import Cut, WeightSource, is_part, parts, turned, whole
from jaxrun.process.errors import UserError


def load_weight(source: WeightSource, weight: Weight, dtype: DTypeLike, sharding: NamedSharding | None) -> Array:
    """Reads a weight, each shard of it once for all devices that hold it.

    Args:
        source: The files.
        weight: Which.
        dtype: That it takes.
        sharding: Of its Variable; None is the default device.

    Raises:
        UserError: A number is not finite, as it is stored or in `dtype`.
    """
    shape = weight.shape if weight.layers is None else (len(weight.layers), *weight.shape)
    if sharding is None:
        return _load_shard(source, weight, dtype, whole(shape), [None])[0]
    holders: dict[Cut, list[jax.Device | None]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        if device in sharding.addressable_devices:
            cut = tuple(slice(*one.indices(size)[:2]) for one, size in zip(index, shape, strict=True))
            holders.setdefault(cut, []).append(device)
    shards = [shard for cut, devices in holders.items() for shard in _load_shard(source, weight, dtype, cut, devices)]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards, dtype=dtype)


def _load_shard(
    source: WeightSource, weight: Weight, dtype: DTypeLike, cut: Cut, devices: Sequence[jax.Device | None]
) -> list[Array]:
    """Reads a shard once for all devices that hold it; None is the default device.

    Raises:
        UserError: A number is not finite, as it is stored or in `dtype`.
    """
    if is_part(cut):
        return _load_part(source, weight, dtype, cut, devices)
    finite: list[Array] = []
    buffers = [_zeros(tuple(axis.stop - axis.start for axis in cut), dtype, device) for device in devices]
    layers, cut = ((0,), cut) if weight.layers is None else (weight.layers[cut[0]], cut[1:])
    for place, layer in enumerate(layers):
        turns = source.find(weight, layer).turned
        for part in parts(turned(cut) if turns else cut):
            tensor = np.ascontiguousarray(source.read(weight, layer, part))
            begin = [one.start - axis.start for one, axis in zip(turned(part) if turns else part, cut, strict=True)]
            start = np.asarray(begin if weight.layers is None else [place, *begin], np.int32)
            jax.block_until_ready(buffers)  # so that no more than two parts wait
            placed = [
                _place(buffer, jax.device_put(tensor, device), start, turns)
                for buffer, device in zip(buffers, devices, strict=True)
            ]
            buffers, finite = [buffer for buffer, _ in placed], [*finite, placed[0][1]]
    if not all(map(bool, jax.device_get(finite))):
        raise _not_finite(source, weight, dtype, layers, cut)
    return jax.block_until_ready(buffers)


def _load_part(
    source: WeightSource, weight: Weight, dtype: DTypeLike, cut: Cut, devices: Sequence[jax.Device | None]
) -> list[Array]:
    """Reads a shard that is no more than a part, and makes it here: nothing is compiled for its shape and device.

    Raises:
        UserError: As `_load_shard`.
    """
    layers, cut = ((0,), cut) if weight.layers is None else (weight.layers[cut[0]], cut[1:])
    read = []
    for layer in layers:
        turns = source.find(weight, layer).turned
        tensor = np.asarray(source.read(weight, layer, turned(cut) if turns else cut))
        with np.errstate(over="ignore"):
            tensor = tensor.astype(jax.dtypes.canonicalize_dtype(tensor.dtype)).astype(jnp.dtype(dtype))
        read.append(np.swapaxes(tensor, -1, -2) if turns else tensor)
    value = read[0] if weight.layers is None else np.stack(read)
    if not np.isfinite(value).all():
        raise _not_finite(source, weight, dtype, layers, cut)
    return [jax.device_put(value, device, may_alias=False) for device in devices]


def _not_finite(source: WeightSource, weight: Weight, dtype: DTypeLike, layers: Iterable[int], cut: Cut) -> UserError:
    """Reads a shard again to say which of its numbers is not finite, or not in `dtype`."""
    kind = jnp.dtype(dtype)
    for layer in layers:
        key, _, turns = source.find(weight, layer)
        for part in parts(turned(cut) if turns else cut):
            tensor = np.asarray(source.read(weight, layer, part)).astype(np.float32)
            with np.errstate(over="ignore"):
                found = np.argwhere(~np.isfinite(tensor.astype(kind)))
            if found.size:
                value = float(tensor[tuple(found[0])])
                name = weight.keys(layer)[part[0].start + found[0][0]] if weight.experts else key
                limit = f", and {kind.name} ends at {float(jnp.finfo(kind).max):,.6g}"
                said = limit if np.isfinite(value) else ", expected finite numbers"
                return UserError(f"{source.where}: weight {name} has a value of {value:,.6g}{said}")
    raise AssertionError(f"{source.where}: {weight.path} was not finite and is when it is read again")


def _zeros(shape: tuple[int, ...], dtype: DTypeLike, device: jax.Device | None) -> Array:
    """Made where it stays; `jnp.zeros` with a device would make it on the default one first."""
    with contextlib.nullcontext() if device is None else jax.default_device(device):
        return jnp.zeros(shape, dtype)


@partial(jax.jit, static_argnames="turns", donate_argnums=0)
def _place(
    buffer: Float[Array, "*shard"], part: Float[Array, "*part"], start: Int[Any, "axes"], turns: bool
) -> tuple[Float[Array, "*shard"], Bool[Array, ""]]:
    """Writes a part where it begins in a shard, and tells whether it is finite there; both run on the device."""
    part = (jnp.swapaxes(part, -1, -2) if turns else part).astype(buffer.dtype)
    part = part.reshape((1,) * (buffer.ndim - part.ndim) + part.shape)
    placed = jax.lax.dynamic_update_slice(buffer, part, [start[axis] for axis in range(buffer.ndim)])
    return placed, jnp.isfinite(part).all()
