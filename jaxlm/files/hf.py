"""Hugging Face model folders written: safetensors, sharded or not, config.json and what goes beside it."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array
from transformers import PreTrainedTokenizerBase

from jaxlm.devices.frozen_weight import all_dense
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import weights
from jaxlm.files.hf_config import to_hf
from jaxlm.files.hub import find_model
from jaxlm.files.tensor_file import write_tensors
from jaxlm.files.tokenizer import save_tokenizer
from jaxlm.models.transformer import Transformer
from jaxrun.files.folders import replace_folder
from jaxrun.files.foreign_files import read_json
from jaxrun.process.errors import UserError

_OF_THE_MODEL = frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"})
MAX_SHARD_BYTES = 5_000_000_000


def sampling_defaults(source: str | Path) -> dict[str, Any]:
    """Returns how a base writes by default, such as its temperature: its generation_config.json without the tokens.

    Args:
        source: As for `jaxlm.files.weights.load_model`.

    Raises:
        UserError: No such model, or a file that is no JSON object.
    """
    path = find_model(source, weights=False) / "generation_config.json"
    raw = read_json(path) if path.is_file() else {}
    return {key: value for key, value in raw.items() if key not in _OF_THE_MODEL and not key.startswith("_")}


def save_model(
    folder: str | Path,
    config: ModelConfig,
    model: Transformer | nnx.State,
    *,
    dtype: DTypeLike,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Writes a model folder that transformers and its kin load; it takes the place of `folder` once complete.

    Args:
        folder: Where to; its parent must exist.
        config: The model's config.
        model: The model, or its state.
        dtype: To write in.
        max_shard_bytes: Largest size of a file; also the most that waits in host memory. A larger tensor is alone.
        tokenizer: Written along.

    Raises:
        UserError: Full disk, no permission, or a weight that `dtype` cannot hold.
    """
    state = nnx.state(model) if isinstance(model, nnx.Module) else model
    flat = nnx.to_flat_state(all_dense(state, jnp.float32))
    values = {".".join(map(str, path)): variable.get_value() for path, variable in flat}
    check_range(folder, config, values, dtype)
    with replace_folder(folder) as partial:
        write_weights(partial, config, values, dtype=dtype, max_shard_bytes=max_shard_bytes, tokenizer=tokenizer)


def write_weights(
    folder: str | Path,
    config: ModelConfig,
    values: Mapping[str, Array],
    *,
    dtype: DTypeLike,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    tokenizer: PreTrainedTokenizerBase | None = None,
    settings: Mapping[str, Any] | None = None,
    beside: Mapping[str, str] | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> None:
    """Fills a model folder with weights by path, as `save_model` does with a model.

    Args:
        folder: An empty one.
        config: The model's config.
        values: The weights, as `jaxlm.families.names.weights` lists them.
        dtype: To write in.
        max_shard_bytes: Largest size of a file.
        tokenizer: Written along.
        settings: config.json; None is that of the config.
        beside: More files by name.
        sampling: How it writes by default, of `sampling_defaults`.

    Raises:
        UserError: Full disk, no permission.
    """
    folder = Path(folder)
    entries = [
        (key, weight, (place, expert) if weight.experts else (place,))
        for weight in weights(config)
        for place, layer in enumerate(weight.entries)
        for expert, key in enumerate(weight.keys(layer))
    ]
    width = jnp.dtype(dtype).itemsize
    sizes = [int(np.prod(weight.shape)) // max(weight.experts, 1) * width for _, weight, _ in entries]
    shards = _shards(sizes, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards):
        tensors = {}
        for key, weight, place in (entries[index] for index in shard):
            value = values[weight.path][None] if weight.layers is None else values[weight.path]
            tensors[key] = np.asarray(_take(value, tuple(map(np.int32, place)), weight.transposed, jnp.dtype(dtype)))
        name = "model.safetensors" if len(shards) == 1 else f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(tensors, name)
        write_tensors(folder / name, tensors)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    raw = dict(to_hf(config) if settings is None else settings) | {"torch_dtype": jnp.dtype(dtype).name}
    _write_json(folder / "config.json", raw)
    tokens = {key: raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if raw.get(key) is not None}
    _write_json(folder / "generation_config.json", {**(sampling or {}), **tokens})
    if tokenizer is not None:
        save_tokenizer(folder, tokenizer)
    for name, text in (beside or {}).items():
        (folder / name).write_text(text, encoding="utf-8")


def check_range(folder: str | Path, config: ModelConfig, values: Mapping[str, Array], dtype: DTypeLike) -> None:
    """Makes sure that every weight is a number in the dtype that it is to be written in.

    Args:
        folder: Where to.
        config: The model's config.
        values: The weights, as `jaxlm.families.names.weights` lists them.
        dtype: To write in.

    Raises:
        UserError: One is not finite, or becomes infinite.
    """
    kind = jnp.dtype(dtype)
    for weight in weights(config):
        value = values[weight.path] if weight.layers is not None else values[weight.path][None]
        for place, fits in enumerate(np.asarray(_holds(value, kind))):
            if not fits:
                tensor = np.asarray(value[place].astype(jnp.float32))
                finite = bool(np.isfinite(tensor).all())
                what = f"a value of {np.abs(tensor).max():,.6g}" if finite else "a value that is not finite"
                keys, limit = weight.keys(weight.entries[place]), float(jnp.finfo(kind).max)
                worst = np.abs(tensor).reshape(len(keys), -1).max(axis=1)
                name = keys[int(worst.argmax())]
                raise UserError(f"{folder}: weight {name} has {what}, and {kind.name} ends at {limit:,.6g}")


@partial(jax.jit, static_argnums=1)
def _holds(stacked: Array, dtype: Any) -> Array:
    """Returns, for each layer, whether all values are finite in `dtype`."""
    return jnp.isfinite(stacked.astype(dtype)).all(tuple(range(1, stacked.ndim)))


def _shards(sizes: list[int], limit: int) -> list[list[int]]:
    """Cuts the entries, in order, into files of at most `limit` bytes."""
    shards: list[list[int]] = []
    room = 0
    for index, size in enumerate(sizes):
        if not shards or size > room:
            shards.append([])
            room = limit
        shards[-1].append(index)
        room -= size
    return shards


@partial(jax.jit, static_argnums=(2, 3))
def _take(stacked: Array, place: tuple[Array, ...], transposed: bool, dtype: Any) -> Array:
    tensor = stacked
    for index in place:
        tensor = jax.lax.dynamic_index_in_dim(tensor, index, 0, keepdims=False)
    tensor = tensor.astype(dtype)
    return tensor.T if transposed else tensor


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
