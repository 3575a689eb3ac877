"""A fingerprint of arrays where they lie: the same for the same numbers on any devices, another for any other ones."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32

_ODD = (0x9E3779B1, 0x85EBCA6B)


def fingerprint(tree: Any) -> str:
    """Returns a digest of the names, shapes, dtypes and bits of all arrays of a tree, as hex.

    Devices read their own shards once and send 8 bytes of each array. It tells changes apart that happen, not such as
    are made so that it does not.

    Args:
        tree: Of arrays on devices; all processes that have parts of them must call it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = jax.device_get(jax.jit(lambda arrays: [_sums(one) for one in arrays])([leaf for _, leaf in leaves]))
    said = [
        (jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype), own.tolist())
        for (path, leaf), own in zip(leaves, sums, strict=True)
    ]
    return hashlib.sha256(repr(said).encode()).hexdigest()


def _sums(array: Shaped[Array, "..."]) -> UInt32[Array, "2"]:
    """Adds up the bits of all elements, each mixed with its place: their order changes nothing."""
    bits = _bits(array)
    place = jnp.zeros(array.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(array.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    return jnp.stack([jnp.sum(_mixed(bits, place, odd), dtype=jnp.uint32) for odd in _ODD])


def _mixed(bits: UInt32[Array, "..."], place: UInt32[Array, "..."], odd: int) -> UInt32[Array, "..."]:
    """Spreads every bit of both over all bits (the finalizer of MurmurHash3)."""
    mixed = bits ^ (place * jnp.uint32(odd) + jnp.uint32(odd >> 3))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> jnp.uint32(shift))) * jnp.uint32(factor)
    return mixed ^ (mixed >> jnp.uint32(16))


def _bits(array: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    if array.dtype.itemsize == 1 or jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == bool:
        whole = jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == bool
        return (array if whole else jax.lax.bitcast_convert_type(array, jnp.uint8)).astype(jnp.uint32)
    kind = {2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    return jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
