"""The adapter merged into the base: W + scale · A B; in place, so that no weight is there twice."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from altojax.adapters.peft_config import AdapterSpec
from altojax.adapters.peft_files import Adapter
from jaxlm.devices.frozen_weight import dense
from jaxlm.models.transformer import Transformer


def merge(model: Transformer, spec: AdapterSpec, adapter: Adapter) -> None:
    """Adds an adapter to the weights of `model`, in place; summed in float32, then cast to the dtype of the weights.

    A packed matrix becomes an array of the dtype that is computed in. Weights stay on the devices that they lie on.

    Args:
        model: A base, whose own adapters, if it has any, stay as they are.
        spec: The adapter's description.
        adapter: Its arrays.
    """
    for key, (a, b) in adapter.items():
        projection = projection_of(model, key)
        scale = jnp.asarray(spec.scale, jnp.float32)
        kernel = dense(projection.kernel.get_value(), projection.dtype)
        projection.kernel.set_value(_adding(kernel.sharding)(kernel, jnp.asarray(a), jnp.asarray(b), scale))


def round_weights(model: Transformer, dtype: DTypeLike) -> None:
    """Rounds the weights of `model`, in place, to those that `dtype` has; they keep their own."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    rounded = []
    for path, variable in flat:
        weight = variable.get_value()
        if weight.dtype != jnp.dtype(dtype):
            weight = _rounding(weight.sharding, jnp.dtype(dtype))(weight)
        rounded.append((path, variable.replace(weight)))
    nnx.update(model, nnx.from_flat_state(rounded))


def projection_of(model: Transformer, key: str) -> Any:
    """Returns the module of a projection key such as ``self_attn.q_proj``."""
    module: nnx.Module = model.layers
    for name in key.split("."):
        module = getattr(module, name)
    return module


@cache
def _adding(where: Sharding) -> Callable[..., Array]:
    return jax.jit(_add, donate_argnums=0, out_shardings=where)


@cache
def _rounding(where: Sharding, dtype: Any) -> Callable[..., Array]:
    return jax.jit(lambda weight: weight.astype(dtype).astype(weight.dtype), donate_argnums=0, out_shardings=where)


def _add(
    kernel: Float[Array, "layer in out"],
    a: Float[Array, "layer in rank"],
    b: Float[Array, "layer rank out"],
    scale: Float[Array, ""],
) -> Float[Array, "layer in out"]:
    def one(layer: Array, kernel: Array) -> Array:
        w = jax.lax.dynamic_index_in_dim(kernel, layer, keepdims=False)
        delta = jnp.matmul(a[layer], b[layer], precision=jax.lax.Precision.HIGHEST)
        merged = (w.astype(jnp.float32) + scale * delta).astype(w.dtype)
        return jax.lax.dynamic_update_index_in_dim(kernel, merged, layer, 0)

    return jax.lax.fori_loop(0, kernel.shape[0], one, kernel)
