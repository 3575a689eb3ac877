"""What a mixer is asked for, and what every layer is told of the tokens."""

from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float, Int

from jaxlm.families.config import ModelConfig
from jaxlm.families.schedule import LayerKind
from jaxlm.models.mixers.row_texts import RowTexts

Angles = tuple[Float[Array, "batch length half"], Float[Array, "batch length half"]]
LayerCache = tuple[Array, ...]
"""What a mixer keeps of the tokens before, of the shapes that its `cache_shapes` says."""


class Positions(NamedTuple):
    """Positions of a batch's tokens; the same for every layer.

    Attributes:
        positions: int32, counted from each text's own beginning.
        angles: Cosine and sine of each of `jaxlm.families.schedule.rotations`.
        texts: Where texts lie in rows that they share; None is one text a row.
        ends: int32, tokens of each row's text so far; what follows them pads the row. Beside a cache alone.
    """

    positions: Int[Array, "batch length"]
    angles: tuple[Angles, ...]
    texts: RowTexts | None
    ends: Int[Array, "batch"] | None = None


class Mixer(Protocol):
    """The part of a layer in which a token reads those before it in its text, and no others."""

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        places: Positions,
        routing: Any,
        kind: LayerKind,
        cache: LayerCache | None = None,
    ) -> tuple[Float[Array, "batch length width"], LayerCache | None]:
        """Mixes tokens.

        Args:
            x: Normed residual stream.
            places: Where the tokens stand.
            routing: Passed on to every projection.
            kind: Of this layer.
            cache: Of the tokens before; None outside generation.

        Returns:
            What to add to the residual stream, and the cache with these tokens in it.
        """

    @staticmethod
    def cache_shapes(config: ModelConfig, batch: int, length: int) -> tuple[tuple[int, ...], ...]:
        """Returns the shapes of a layer's cache.

        Args:
            config: Of the layer.
            batch: Rows.
            length: Tokens of the longest row.
        """
