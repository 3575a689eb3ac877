"""The small modules a block is made of. With `layers` given, every Variable carries that leading axis for the scan."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxlm.devices.frozen_weight import dense
from jaxlm.families.config import ModelConfig
from jaxlm.families.projections import kinds_of

INIT_STD = 0.02


def stacked(shape: tuple[int, ...], layers: int | None) -> tuple[int, ...]:
    """`shape`, with the leading layer axis when there is one."""
    return shape if layers is None else (layers, *shape)


@partial(jax.jit, static_argnums=(1, 2))
def _normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Compiled, so that a large weight of half precision never exists in float32."""
    return (jax.random.normal(key, shape, jnp.float32) * INIT_STD).astype(dtype)


def random_weight(rngs: nnx.Rngs, shape: tuple[int, ...], layers: int | None, dtype: DTypeLike) -> Array:
    """Returns a random weight, with the leading layer axis when there is one."""
    return _normal(rngs.params(), stacked(shape, layers), dtype)


class Linear(nnx.Module):
    """``y = x @ kernel + bias``.

    Attributes:
        kernel: ``[in, out]``, or ``[layer, in, out]`` outside the scan; an array or a `FrozenWeight`.
        bias: ``[out]`` (``[layer, out]``) or None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        use_bias: bool = False,
        *,
        layers: int | None = None,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.kernel = nnx.Param(random_weight(rngs, (in_features, out_features), layers, param_dtype))
        self.bias = nnx.Param(jnp.zeros(stacked((out_features,), layers), param_dtype)) if use_bias else None

    def __call__(self, x: Float[Array, "*rows in"], routing: Any = None) -> Float[Array, "*rows out"]:
        """Projects `x` in the compute dtype; `routing` is for adapted projections and ignored here."""
        y = x.astype(self.dtype) @ dense(self.kernel.get_value(), self.dtype).astype(self.dtype)
        if self.bias is None:
            return y
        bias = self.bias[...].astype(self.dtype)
        return y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


def add_projections(owner: nnx.Module, part: str, config: ModelConfig, **kinds: Any) -> None:
    """Gives a part of the block its projections, with random weights.

    Args:
        owner: The part.
        part: As `jaxlm.families.projections.ProjectionKind` calls it: ``self_attn`` or ``mlp``.
        config: The model.
        **kinds: Of `Linear`.
    """
    for one in kinds_of(config):
        if one.part == part:
            linear = Linear(one.in_features(config), one.out_features(config), getattr(config, one.bias), **kinds)
            setattr(owner, one.name, linear)


def project(layers: Sequence[Any], x: Float[Array, "*rows in"], routing: Any) -> tuple[Float[Array, "*rows out"], ...]:
    """Returns several projections of one input.

    Layers of a kind that has ``together(layers, x, routing)`` are computed by it, so that they share what they can.
    """
    kind = type(layers[0])
    if hasattr(kind, "together") and all(type(layer) is kind for layer in layers):
        return kind.together(layers, x, routing)
    return tuple(layer(x, routing) for layer in layers)


class Embedding(nnx.Module):
    """Rows of a table; also the untied output head, whose Hugging Face layout is the same ``[vocab, width]``."""

    def __init__(self, size: int, width: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        self.embedding = nnx.Param(_normal(rngs.params(), (size, width), param_dtype))

    def __call__(self, indices: Int[Array, "batch length"]) -> Float[Array, "batch length width"]:
        """Looks up rows, in the compute dtype."""
        return jnp.take(self.embedding[...], indices, axis=0).astype(self.dtype)


def normalised(x: Float[Array, "*rows width"], eps: float) -> Float[Array, "*rows width"]:
    """Divides each row by the root of its mean square, in float32."""
    y = x.astype(jnp.float32)
    return y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)


class LayerScale(nnx.Module):
    """A number of each layer.

    Attributes:
        scale: ``[1]``, or ``[layer, 1]`` outside of the layers.
    """

    def __init__(self, layers: int, param_dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones((layers, 1), param_dtype))

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        """Multiplies all of `x`."""
        return x * self.scale[...].astype(x.dtype).reshape((1,) * x.ndim)


class Norm(nnx.Module):
    """RMSNorm or LayerNorm over the last axis, computed in float32 and returned in the dtype of its input.

    Attributes:
        kind: ``rms`` (no mean, no bias) or ``layer``.
        offset: Added to the scale; Gemma stores ``w`` and multiplies by ``1 + w``.
        gain: Multiplies the outputs.
    """

    def __init__(
        self,
        width: int,
        *,
        kind: str,
        eps: float,
        offset: float = 0.0,
        gain: float = 1.0,
        use_bias: bool = True,
        layers: int | None = None,
        param_dtype: DTypeLike,
    ):
        self.kind, self.eps, self.offset, self.gain = kind, eps, offset, gain
        self.scale = nnx.Param(jnp.full(stacked((width,), layers), 1.0 - offset, param_dtype))
        self.bias = (
            nnx.Param(jnp.zeros(stacked((width,), layers), param_dtype)) if kind == "layer" and use_bias else None
        )

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        """Normalises each row."""
        rows = (1,) * (x.ndim - 1)
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = normalised(y, self.eps)
        y = y * (self.scale[...].astype(jnp.float32) + self.offset).reshape(*rows, -1)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32).reshape(*rows, -1)
        return (y if self.gain == 1.0 else y * self.gain).astype(x.dtype)
