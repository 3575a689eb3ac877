"""A layer: norms, a mixer in which tokens read one another, and an MLP or experts in which each stands alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlm.devices.mesh import MeshAxes
from jaxlm.families.config import ModelConfig
from jaxlm.families.schedule import LayerKind
from jaxlm.models.experts import MixtureOfExperts
from jaxlm.models.layers import LayerScale, Linear, Norm, add_projections, project
from jaxlm.models.mixers.attention import Attention
from jaxlm.models.mixers.mixer import LayerCache, Mixer, Positions
from jaxlm.models.mixers.short_conv import ShortConv

MIXERS: dict[str, type[Mixer]] = {"self_attn": Attention, "conv": ShortConv}
"""By `ModelConfig.mixer`."""
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class MLP(nnx.Module):
    """Gated or plain two-layer perceptron."""

    gate_up_proj: Linear
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear

    def __init__(self, config: ModelConfig, *, layers: int, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.gated, self.fused, self.activation = config.gated_mlp, config.fused_gate_up, config.activation
        kinds: dict[str, Any] = {"layers": layers, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        add_projections(self, "mlp", config, **kinds)

    def __call__(self, x: Float[Array, "batch length width"], routing: Any) -> Float[Array, "batch length width"]:
        """Transforms each token by itself."""
        activate = ACTIVATIONS[self.activation]
        if not self.gated:
            return self.down_proj(activate(self.up_proj(x, routing)), routing)
        if self.fused:
            gate, up = jnp.split(self.gate_up_proj(x, routing), 2, axis=-1)
        else:
            gate, up = project((self.gate_proj, self.up_proj), x, routing)
        return self.down_proj(activate(gate) * up, routing)


class Block(nnx.Module):
    """A mixer and an MLP or experts, normed before or after, added to the residual stream. Holds all layers, stacked.

    Of `MIXERS` it has the one of its config, under that name.
    """

    self_attn: Attention
    conv: ShortConv
    input_layernorm: Norm
    post_attention_layernorm: Norm
    pre_feedforward_layernorm: Norm
    post_feedforward_layernorm: Norm

    def __init__(
        self,
        config: ModelConfig,
        *,
        layers: int,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
        mesh_axes: MeshAxes | None = None,
    ):
        self.config, self.mesh_axes = config, mesh_axes
        kinds: dict[str, Any] = {"layers": layers, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        mixer: Any = MIXERS[config.mixer]
        setattr(self, config.mixer, mixer(config, **kinds))
        if config.routed:
            self.mlp: MLP | MixtureOfExperts = MixtureOfExperts(config, ACTIVATIONS[config.activation], **kinds)
        else:
            self.mlp = MLP(config, **kinds)
        for name in config.block_norms:
            setattr(self, name, stream_norm(config, param_dtype, layers))
        if config.layer_scale:
            self.layer_scale = LayerScale(layers, param_dtype)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        places: Positions,
        routing: Any,
        kind: LayerKind,
        cache: LayerCache | None = None,
    ) -> tuple[Float[Array, "batch length width"], LayerCache | None]:
        """Runs one layer; see `Mixer` for the arguments."""
        before, after = self.config.pre_norms, self.config.post_norms
        read = self._enter(self.input_layernorm(x) if before else x)
        mixer: Mixer = getattr(self, self.config.mixer)
        mixed, cache = mixer(read, places, routing, kind, cache)
        if self.config.parallel:
            return self._add(x, self._leave(mixed + self.mlp(read, routing))), cache
        mixed = self._leave(mixed)
        x = self._add(x, self.post_attention_layernorm(mixed) if after else mixed)
        read = x
        if before:
            read = self.pre_feedforward_layernorm(x) if after else self.post_attention_layernorm(x)
        inner = self._leave(self.mlp(self._enter(read), routing))
        x = self._add(x, self.post_feedforward_layernorm(inner) if after else inner)
        return self.layer_scale(x) if self.config.layer_scale else x, cache

    def _add(self, x: Array, part: Array) -> Array:
        scale = self.config.residual_scale
        return x + (part if scale == 1.0 else part * jnp.asarray(scale, part.dtype))

    def _enter(self, x: Array) -> Array:
        return x if self.mesh_axes is None else self.mesh_axes.enter(x)

    def _leave(self, y: Array) -> Array:
        return y if self.mesh_axes is None else self.mesh_axes.leave(y)


def cache_shapes(config: ModelConfig, batch: int, length: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Returns the shapes of what each of a model's stacks keeps of the tokens before, layers first.

    Args:
        config: The model.
        batch: Rows.
        length: Tokens of the longest row.
    """
    return tuple(
        tuple((len(layers), *shape) for shape in MIXERS[own.mixer].cache_shapes(own, batch, length))
        for _, layers, own in config.stacks
    )


def stream_norm(config: ModelConfig, param_dtype: DTypeLike, layers: int | None, gain: float = 1.0) -> Norm:
    """Returns a norm of the residual stream, with the leading layer axis when there is one."""
    return Norm(
        config.hidden_size,
        kind=config.norm,
        eps=config.norm_eps,
        offset=config.norm_offset,
        gain=gain,
        use_bias=config.norm_bias,
        layers=layers,
        param_dtype=param_dtype,
    )
