"""The adapter merged into the base: W + scale · A B."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from altojax.adapters.peft_config import AdapterSpec
from altojax.adapters.peft_files import Adapter
from jaxlm.devices.frozen_weight import dense
from jaxlm.models.transformer import Transformer


def merge(model: Transformer, spec: AdapterSpec, adapter: Adapter) -> None:
    """Adds an adapter to the weights of `model`, in place; summed in float32, then cast to the dtype of the weights.

    A packed matrix becomes an array of the dtype that is computed in.

    Args:
        model: A base without adapters of its own.
        spec: The adapter's description.
        adapter: Its arrays.
    """
    for key, (a, b) in adapter.items():
        projection = projection_of(model, key)
        scale = jnp.asarray(spec.scale, jnp.float32)
        kernel = dense(projection.kernel.get_value(), projection.dtype)
        projection.kernel.set_value(_add(kernel, jnp.asarray(a), jnp.asarray(b), scale))


def projection_of(model: Transformer, key: str) -> Any:
    """Returns the module of a projection key such as ``self_attn.q_proj``."""
    module: nnx.Module = model.layers
    for name in key.split("."):
        module = getattr(module, name)
    return module


@partial(jax.jit, donate_argnums=0)
def _add(
    kernel: Float[Array, "layer in out"],
    a: Float[Array, "layer in rank"],
    b: Float[Array, "layer rank out"],
    scale: Float[Array, ""],
) -> Float[Array, "layer in out"]:
    def one(layer: tuple[Array, Array, Array]) -> Array:
        w, a, b = layer
        delta = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return (w.astype(jnp.float32) + scale * delta).astype(w.dtype)

    return jax.lax.map(one, (kernel, a, b))
