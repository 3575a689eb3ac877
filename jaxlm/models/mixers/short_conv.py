"""A gated short convolution: each channel of a token is a sum over its own last few tokens.

Source: LFM2 of Liquid AI, as transformers computes it.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlm.families.config import ModelConfig
from jaxlm.families.schedule import LayerKind
from jaxlm.models.layers import Linear, add_projections, random_weight, stacked
from jaxlm.models.mixers.mixer import LayerCache, Positions


class ShortConv(nnx.Module):
    """``out_proj(after * conv(before * x))``, of which ``in_proj`` makes all three."""

    in_proj: Linear
    out_proj: Linear

    def __init__(self, config: ModelConfig, *, layers: int, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        add_projections(self, "conv", config, layers=layers, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.conv = DepthwiseConv(config, layers=layers, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        places: Positions,
        routing: Any,
        kind: LayerKind,
        cache: LayerCache | None = None,
    ) -> tuple[Float[Array, "batch length width"], LayerCache | None]:
        """Mixes tokens; see `Mixer`. The cache holds what the convolution has read last."""
        before, after, x = jnp.split(self.in_proj(x, routing), 3, axis=-1)
        read = before * x
        if cache is None:
            return self.out_proj(after * self.conv.within_texts(read, places), routing), None
        mixed, last = self.conv.behind(read, places, *cache)
        return self.out_proj(after * mixed, routing), (last,)

    @staticmethod
    def cache_shapes(config: ModelConfig, batch: int, length: int) -> tuple[tuple[int, ...], ...]:
        """Returns the shapes of a layer's cache, which is of the same size for rows of any length."""
        return ((batch, config.conv_taps - 1, config.hidden_size),)


class DepthwiseConv(nnx.Module):
    """A causal convolution of each channel by itself, summed in float32.

    Attributes:
        weight: ``[width, 1, taps]`` (``[layer, width, 1, taps]``), the newest token's last.
        bias: ``[width]`` (``[layer, width]``) or None.
    """

    def __init__(self, config: ModelConfig, *, layers: int, param_dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.hidden_size
        self.weight = nnx.Param(random_weight(rngs, (width, 1, config.conv_taps), layers, param_dtype))
        self.bias = nnx.Param(jnp.zeros(stacked((width,), layers), param_dtype)) if config.conv_bias else None

    def within_texts(
        self, x: Float[Array, "batch length width"], places: Positions
    ) -> Float[Array, "batch length width"]:
        """Reads whole texts: before the first token of each there is nothing, whoever shares its row."""
        back = self.weight.get_value().shape[-1] - 1
        padded = jnp.pad(x, ((0, 0), (back, 0), (0, 0)))

        def earlier(by: int) -> Array:
            shifted = padded[:, back - by : padded.shape[1] - by]
            # A choice, not a product: what is before may be another trial's, and not finite.
            return jnp.where((places.positions >= by)[:, :, None], shifted, jnp.zeros((), x.dtype))

        return self._sum([earlier(by) for by in range(back, -1, -1)], x)

    def behind(
        self, x: Float[Array, "batch length width"], places: Positions, last: Float[Array, "batch before width"]
    ) -> tuple[Float[Array, "batch length width"], Float[Array, "batch before width"]]:
        """Reads on behind the last tokens before, and returns those of now as well."""
        assert places.ends is not None
        length, back = x.shape[1], last.shape[1]
        whole = jnp.concatenate((last.astype(x.dtype), x), axis=1)
        newest = (places.ends - places.positions[:, 0])[:, None] + jnp.arange(back, dtype=jnp.int32)[None]
        kept = jnp.take_along_axis(whole, newest[:, :, None], axis=1)
        return self._sum([whole[:, at : at + length] for at in range(back + 1)], x), kept.astype(last.dtype)

    def _sum(self, read: list[Array], x: Array) -> Array:
        weight = self.weight[...].astype(jnp.float32)[:, 0]
        y = sum((one.astype(jnp.float32) * weight[None, None, :, at] for at, one in enumerate(read)), jnp.float32(0))
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)[None, None]
        return y.astype(x.dtype)
