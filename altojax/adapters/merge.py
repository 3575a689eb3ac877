"""The adapter merged into the base: W + scale · A B; in place, so that no weight is there twice."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from altojax.adapters.peft_config import AdapterSpec
from altojax.adapters.peft_files import Adapter
from jaxlm.devices.frozen_weight import dense
from jaxlm.families.names import adaptable
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
        scale = jnp.asarray(spec.scale, jnp.float32)
        site = adaptable(model.config)[key]
        if site.experts:
            _merge_experts(model, site.path, np.asarray(a), np.asarray(b), scale)
            continue
        projection = projection_of(model, site.path)
        kernel = dense(projection.kernel.get_value(), projection.dtype)
        projection.kernel.set_value(_adding(kernel.sharding)(kernel, jnp.asarray(a), jnp.asarray(b), scale))


def _merge_experts(model: Transformer, path: str, a: np.ndarray, b: np.ndarray, scale: Array) -> None:
    """Adds to the matrices of every expert, to two where the files hold apart what opens them."""
    experts, name = model.config.experts, path.rpartition(".")[2]
    a = a.reshape(a.shape[0], -1, experts, a.shape[-1])
    b = b.reshape(*b.shape[:2], -1, experts)
    owner, halves = projection_of(model, path.rpartition(".")[0]), {name: b}
    if name == "gate_up_proj" and not model.config.fused_experts:
        halves = {"gate_proj": b[:, :, ::2], "up_proj": b[:, :, 1::2]}
    for half, own in halves.items():
        matrix = getattr(owner, half)
        kernel = dense(matrix.kernel.get_value(), matrix.dtype)
        for expert in range(experts):
            place = np.int32(expert)
            kernel = _adding_to_expert(kernel.sharding)(kernel, a[:, :, expert], own[..., expert], scale, place)
        matrix.kernel.set_value(kernel)


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


def projection_of(model: Transformer, path: str) -> Any:
    """Returns the module of a projection's path such as ``layers.self_attn.q_proj``."""
    module: nnx.Module = model
    for name in path.split("."):
        module = getattr(module, name)
    return module


@cache
def _adding(where: Sharding) -> Callable[..., Array]:
    return jax.jit(_add, donate_argnums=0, out_shardings=where)


@cache
def _adding_to_expert(where: Sharding) -> Callable[..., Array]:
    return jax.jit(_add_to_expert, donate_argnums=0, out_shardings=where)


@cache
def _rounding(where: Sharding, dtype: Any) -> Callable[..., Array]:
    return jax.jit(lambda weight: weight.astype(dtype).astype(weight.dtype), donate_argnums=0, out_shardings=where)


def _add_to_expert(
    kernel: Float[Array, "layer expert in out"],
    a: Float[Array, "layer in rank"],
    b: Float[Array, "layer rank out"],
    scale: Float[Array, ""],
    expert: Int[Array, ""],
) -> Float[Array, "layer expert in out"]:
    own = jax.lax.dynamic_index_in_dim(kernel, expert, axis=1, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(kernel, _add(own, a, b, scale), expert, 1)


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
