"""Row tiles cut into segments of one slot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.segments import cut, most_segments


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_segments_hold_every_row_tile_of_a_slot_once_and_no_other(chunk):
    tile_slots = np.random.default_rng(chunk).integers(0, 5, 40).astype(np.int32)
    segments = jax.tree.map(np.asarray, cut(jnp.asarray(tile_slots), 6, chunk))
    assert segments.start.shape[0] <= most_segments(40, 6, chunk)
    for slot in range(6):
        mine = range(segments.first[slot], segments.first[slot] + segments.number[slot])
        spans = [segments.order[segments.start[one] : segments.start[one] + segments.tiles[one]] for one in mine]
        assert all(0 < len(span) <= chunk for span in spans)
        found = np.concatenate([*spans, np.zeros(0, np.int32)])
        np.testing.assert_array_equal(found, np.flatnonzero(tile_slots == slot))
