"""Scales in eight bits: places in bitsandbytes' dynamic table, times the largest of a group, and more by a mean.

Source: double quantization of QLoRA (arXiv 2305.14314), and ``create_dynamic_map`` of ``bitsandbytes.functional``.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

GROUP = 256
"""Scales that share a factor."""
ROWS = 4
"""Of a group at the most: the others are of neighbouring outputs, so that devices can cut both ways."""
_EXPONENTS = 7


def _dynamic_table() -> np.ndarray:
    """Returns the 256 numbers from -1 to 1, of which each decade has twice as many as the one below it."""
    found, low = [0.0, 1.0], np.float32(0.1)
    for exponent in range(_EXPONENTS):
        count = 2**exponent
        at, step = np.arange(count + 1), float((np.float32(1) - low) / np.float32(count))
        ends = np.where(at < (count + 1) / 2, low + step * at, 1 - step * (count - at)).astype(np.float32)
        means = (ends[:-1] + ends[1:]) / np.float32(2) * np.float32(10.0 ** (exponent - _EXPONENTS + 1))
        found += [*means, *-means]
    return np.sort(np.array(found, np.float32))


TABLE = _dynamic_table()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NestedScales:
    """Scales of blocks: table[places] * factor + mean.

    Attributes:
        places: In the table.
        factor: Of each group of rows and columns.
        mean: Of all scales.
    """

    places: UInt8[Array, "*layer blocks out"]
    factor: Float[Array, "*layer rows columns"]
    mean: Float[Array, "*layer one one"]

    def dense(self) -> Float[Array, "*layer blocks out"]:
        """Returns the scales in float32."""
        factor = self.factor
        for axis in (-2, -1):
            factor = jnp.repeat(factor, self.places.shape[axis] // factor.shape[axis], axis)
        numbers = jnp.asarray(TABLE).at[self.places.astype(jnp.int32)].get(mode="promise_in_bounds")
        return numbers * factor + self.mean


def nested(scale: Float[Array, "*layer blocks out"]) -> NestedScales:
    """Packs scales: of each less their mean, over the largest of its group, the nearest of the table."""
    *layer, blocks, outputs = scale.shape
    rows = min(ROWS, blocks & -blocks)
    columns = min(GROUP // rows, outputs & -outputs)
    mean = jnp.mean(scale, axis=(-2, -1), keepdims=True)
    groups = (scale - mean).reshape(*layer, blocks // rows, rows, outputs // columns, columns)
    factor = jnp.max(jnp.abs(groups), axis=(-3, -1))
    shares = groups / jnp.where(factor > 0, factor, 1)[..., None, :, None]
    places = jnp.searchsorted(jnp.asarray((TABLE[:-1] + TABLE[1:]) / 2), shares.reshape(scale.shape))
    return NestedScales(places.astype(jnp.uint8), factor, mean)
