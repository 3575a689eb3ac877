"""Models in and out: one tensor at a time between file and device, never a checkpoint twice in host memory."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from backbone.config import ModelConfig
from backbone.gguf_weights import GGUFFile
from backbone.hf import HFFolder
from backbone.hub import find_model
from backbone.names import Weight
from backbone.names import weights as weights_of
from backbone.transformer import Transformer
from harness.errors import UserError


class WeightSource(Protocol):
    """A model on disk."""

    where: Path
    config: ModelConfig

    def missing(self, wanted: Iterable[Weight]) -> tuple[list[str], list[str]]:
        """Keys that `wanted` needs and the files lack; keys that the files hold and nothing needs."""

    def read(self, weight: Weight, layer: int) -> tuple[str, np.ndarray]:
        """The key and the tensor, turned (as a view) to the shape that `Weight.shape` states."""


def load_model(
    source: str | Path,
    *,
    dtype: DTypeLike,
    remat: str = "none",
    scan_layers: bool = True,
    random_init: bool = False,
    seed: int = 0,
) -> tuple[ModelConfig, Transformer]:
    """Loads a model onto the default device.

    No code that comes with a model is ever run, and no pickle is ever opened.

    Args:
        source: A Hugging Face folder, a ``.gguf`` file or a hub id.
        dtype: Of the weights and of the computation.
        remat: See `Transformer`.
        scan_layers: Likewise.
        random_init: Fill the model with random weights; only its config is read.
        seed: Of the random weights.

    Raises:
        UserError: No such model; a setting that is not implemented; a weight missing, left over or of another shape.
    """
    opened = _open(source, weights=not random_init)
    config = opened.config
    kinds: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "remat": remat, "scan_layers": scan_layers}
    if random_init:
        return config, Transformer(config, **kinds, rngs=nnx.Rngs(seed))
    return config, _fill(opened, kinds)


def read_model_config(source: str | Path, *, weights: bool = True) -> ModelConfig:
    """Returns a model's shapes and switches without loading it.

    Args:
        source: As for `load_model`.
        weights: Whether its weights are going to be wanted, and so have to be there.

    Raises:
        UserError: No such model, or a setting that is not implemented.
    """
    return _open(source, weights=weights).config


def _open(source: str | Path, *, weights: bool) -> WeightSource:
    path = find_model(source, weights=weights)
    return GGUFFile(path) if path.suffix == ".gguf" else HFFolder(path)


def _fill(source: WeightSource, kinds: Mapping[str, Any]) -> Transformer:
    config = source.config
    wanted = weights_of(config)
    lacking, left_over = source.missing(wanted)
    if lacking:
        raise UserError(f"{source.where}: weight {_some(lacking)} is missing, expected by its config")
    if left_over:
        raise UserError(f"{source.where}: weight {_some(left_over)} is unexpected for its config")

    def build() -> Transformer:
        return Transformer(config, **kinds, rngs=nnx.Rngs(0))

    graph, state = nnx.split(nnx.eval_shape(build))
    flat = dict(nnx.to_flat_state(state))
    for weight in wanted:
        path = tuple(weight.path.split("."))
        flat[path] = flat[path].replace(_load(source, weight, kinds["param_dtype"]))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _load(source: WeightSource, weight: Weight, dtype: DTypeLike) -> Array:
    buffer = jnp.zeros((len(weight.entries), *weight.shape), dtype)
    for place, layer in enumerate(weight.entries):
        key, tensor = source.read(weight, layer)
        if tensor.shape != weight.shape:
            raise UserError(
                f"{source.where}: weight {key} has shape {tensor.shape}, expected {weight.shape} by its config"
            )
        if tensor.dtype not in (np.float32, np.float16, jnp.bfloat16):
            raise UserError(f"{source.where}: weight {key} is {tensor.dtype}, expected float32, float16 or bfloat16")
        turned = not tensor.flags.c_contiguous and tensor.T.flags.c_contiguous
        tensor = jax.device_put(tensor.T if turned else np.ascontiguousarray(tensor))
        buffer = _place(buffer, tensor, np.int32(place), turned)
    return buffer[0] if weight.layers is None else buffer


@partial(jax.jit, static_argnames="turned", donate_argnums=0)
def _place(
    buffer: Float[Array, "layer *shape"], tensor: Float[Array, "*shape"], layer: Int[Any, ""], turned: bool
) -> Float[Array, "layer *shape"]:
    """Writes one layer's tensor; turning and casting run on the device."""
    tensor = (tensor.T if turned else tensor).astype(buffer.dtype)
    return jax.lax.dynamic_update_index_in_dim(buffer, tensor, layer, 0)


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} (and {len(keys) - 1} more)"
