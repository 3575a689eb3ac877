"""What sends each token to the adapter of its slot."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32


class LoRA(nnx.Variable):
    """A trained array of an adapter: float32, leading axes [layer, slot]."""


class Routing(NamedTuple):
    """The adapter of each token, with its scale and dropout. Passed through the transformer unchanged.

    Attributes:
        tile_slots: int32 [tiles], the slot of each of the equal tiles into which the tokens of all rows are cut.
        scale: float32 [slots].
        dropout_rate: float32 [slots], or None when nothing drops.
        token_seeds: uint32 [rows, length], by `pallas_kernels.token_seeds`, or None likewise.
        live: int32, the tiles before those of padding, which kernels may leave out; None where none are.
    """

    tile_slots: Int[Array, " tiles"]
    scale: Float[Array, " slots"]
    dropout_rate: Float[Array, " slots"] | None = None
    token_seeds: UInt32[Array, "rows length"] | None = None
    live: Int[Array, ""] | None = None

    @property
    def slots(self) -> int:
        """How many there are."""
        return self.scale.shape[0]

    def token_slots(self, tokens: int) -> Int[Array, " tokens"]:
        """Returns the slot of each of so many tokens, int32."""
        tiles = self.tile_slots.shape[0]
        return jnp.repeat(self.tile_slots, tokens // tiles, total_repeat_length=tokens)
