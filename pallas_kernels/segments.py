"""Row tiles sorted by slot and cut into runs, so that sums over a slot's rows keep every multiprocessor busy."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int


class Segments(NamedTuple):
    """Runs of row tiles of one slot.

    Attributes:
        order: int32 [m_tiles], the row tiles sorted by slot.
        start: int32 [segments], where in `order` each begins.
        tiles: int32 [segments], row tiles in each; 0 for the unused ones.
        first: int32 [slots], the first segment of each slot.
        number: int32 [slots], segments of each slot.
    """

    order: Int[Array, " m_tiles"]
    start: Int[Array, " segments"]
    tiles: Int[Array, " segments"]
    first: Int[Array, " slots"]
    number: Int[Array, " slots"]


def cut(tile_slots: Int[Array, " m_tiles"], slots: int, chunk: int) -> Segments:
    """Cuts each slot's row tiles into segments of at most `chunk`."""
    tiles = tile_slots.shape[0]
    at = jnp.arange(tiles, dtype=jnp.int32)
    mine, others = tile_slots[:, None], tile_slots[None, :]
    before = (others < mine) | ((others == mine) & (at[None, :] < at[:, None]))
    place = jnp.sum(before, axis=1, dtype=jnp.int32)
    order = jnp.sum(jnp.where(place[None, :] == at[:, None], at[None, :], 0), axis=1, dtype=jnp.int32)
    slot = jnp.arange(slots, dtype=jnp.int32)
    rows = jnp.sum(tile_slots[None, :] == slot[:, None], axis=1, dtype=jnp.int32)
    begin = jnp.sum(tile_slots[None, :] < slot[:, None], axis=1, dtype=jnp.int32)
    number = (rows + jnp.int32(chunk - 1)) // jnp.int32(chunk)
    first = jnp.cumsum(number, dtype=jnp.int32) - number
    segment = jnp.arange(most_segments(tiles, slots, chunk), dtype=jnp.int32)
    owns = (first[None, :] <= segment[:, None]) & (segment[:, None] < (first + number)[None, :])
    skipped = (segment[:, None] - first[None, :]) * jnp.int32(chunk)
    start = jnp.sum(jnp.where(owns, begin[None, :] + skipped, 0), axis=1, dtype=jnp.int32)
    left = jnp.sum(jnp.where(owns, rows[None, :] - skipped, 0), axis=1, dtype=jnp.int32)
    return Segments(order, start, jnp.minimum(left, jnp.int32(chunk)), first, number)


def most_segments(tiles: int, slots: int, chunk: int) -> int:
    """The most segments that `tiles` row tiles of `slots` slots can be cut into."""
    return min(tiles, (tiles + slots * (chunk - 1)) // chunk)


def segment_tiles(m_tiles: int, blocks: int, sms: int) -> int:
    """Returns the row tiles of a segment such that each multiprocessor gets about one."""
    return max(1, -(-m_tiles * blocks // sms))
