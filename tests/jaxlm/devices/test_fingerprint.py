"""Fingerprints of arrays: any other bit, place or name is another one; where they lie changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.devices.fingerprint import fingerprint

BITS = np.arange(24, dtype=np.uint8).reshape(4, 6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 23), st.integers(0, 7), st.integers(0, 23))
def test_any_bit_that_changes_and_any_two_numbers_that_change_places_are_seen(place, bit, other):
    flipped, swapped = BITS.copy().reshape(-1), BITS.copy().reshape(-1)
    flipped[place] ^= 1 << bit
    swapped[[place, other]] = swapped[[other, place]]
    said = fingerprint({"w": jnp.asarray(BITS)})
    assert fingerprint({"w": jnp.asarray(flipped.reshape(4, 6))}) != said
    assert (fingerprint({"w": jnp.asarray(swapped.reshape(4, 6))}) == said) == (place == other)


def test_shapes_dtypes_and_names_are_part_of_it_and_shards_are_not():
    own = jnp.arange(24, dtype=jnp.float32).reshape(4, 6)
    said = fingerprint({"w": own})
    others = [{"w": own.reshape(6, 4)}, {"v": own}, {"w": own.astype(jnp.bfloat16)}, {"w": -own}, {"w": own[:, :5]}]
    others += [{"w": own.astype(jnp.float8_e4m3fn)}, {"w": own.astype(jnp.int4)}, {"w": own > 3}]
    assert len({said, *map(fingerprint, others)}) == 1 + len(others)
    mesh = jax.make_mesh((2, 2), ("a", "b"), devices=jax.devices()[:4])
    placed = jax.device_put(own, NamedSharding(mesh, PartitionSpec("a", "b")))
    assert fingerprint({"w": placed}) == said
