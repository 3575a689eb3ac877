"""Hugging Face model folders: safetensors, sharded or not, memory-mapped in; the same out."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from jaxlm.devices.frozen_weight import all_dense
from jaxlm.families import mxfp4
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import TEXT_HALF, Weight, weights
from jaxlm.families.registry import family_of
from jaxlm.files.hf_config import from_hf, to_hf, with_ends
from jaxlm.files.hub import REFUSED, find_model
from jaxlm.files.stored import Cut, Stored, parts, turned, whole
from jaxlm.files.tokenizer import save_tokenizer
from jaxlm.models.transformer import Transformer
from jaxrun.files.folders import replace_folder
from jaxrun.files.foreign_files import check_regular, read_json
from jaxrun.process.errors import UserError

# Buffers that older exports kept beside the weights.
_BUFFERS = re.compile(r".*(rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")
_TEXT_HALVES = (TEXT_HALF, "language_model.model.", "model.")
_HEADS = ("lm_head.weight", "language_model.lm_head.weight")
TOWER = re.compile(r"(.*\.)?(visual|vision_tower|multi_modal_projector)\..*")
"""Modules of a multimodal model beside its text half."""
READABLE = ("F32", "F16", "BF16")
"""Kinds of numbers that weights may be stored as."""
_OF_THE_MODEL = frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"})
MAX_SHARD_BYTES = 5_000_000_000


class HFFolder:
    """A folder with config.json and safetensors.

    Attributes:
        where: The folder.
        config: Of its config.json.
    """

    def __init__(self, where: Path):
        """Reads config.json; the weights are not opened yet.

        Raises:
            UserError: No config.json, or one that the decoder cannot compute.
        """
        self.where = where
        self.config = read_config(where)

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file that holds each key: of the files in the folder, those that transformers takes.

        Raises:
            UserError: No weights, more than one thing that could be meant, or an index that is wrong.
        """
        single, index = self.where / "model.safetensors", self.where / "model.safetensors.index.json"
        if single.is_file():
            return dict.fromkeys(_open(single).keys(), single)
        if index.is_file():
            listed = read_json(index).get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
                raise UserError(f"{index}: no weight_map, expected the file of every weight")
            for name in set(listed.values()):
                if Path(name).name != name or not (self.where / name).is_file():
                    raise UserError(f"{index}: lists {name!r}, which is not in {self.where}")
            return {key: self.where / name for key, name in listed.items()}
        raise self._no_weights()

    def missing(self, wanted: Iterable[Weight]) -> tuple[list[str], list[str]]:
        """Keys that `wanted` needs and the files lack; keys that the files hold and nothing needs."""
        pairs = [(weight, key) for weight in wanted for layer in weight.entries for key in self._keys(weight, layer)]
        keys, packed = {key for _, key in pairs}, {key for weight, key in pairs if self._is_mxfp4(weight, key)}
        needed = keys - packed | {key + part for key in packed for part in (mxfp4.BLOCKS, mxfp4.SCALES)}
        spare = set(_HEADS) if self._tied_head_is_the_table() else set()
        left_over = [key for key in self.files if key not in needed | spare and not self._of_no_layer(key)]
        return sorted(needed - self.files.keys()), sorted(left_over)

    def find(self, weight: Weight, layer: int) -> Stored:
        """Looks a tensor up without reading it."""
        keys = self._keys(weight, layer)
        if self._is_mxfp4(weight, keys[0]):
            blocks, scales = (tuple(self._raw(keys[0] + part).get_shape()) for part in (mxfp4.BLOCKS, mxfp4.SCALES))
            if blocks != (*scales, mxfp4.GROUP // 2):
                path = self.files[keys[0] + mxfp4.BLOCKS]
                raise UserError(f"{path}: weight {keys[0]} has blocks of shape {blocks}, beside scales of {scales}")
            return Stored(keys[0], turned((*scales[:-1], scales[-1] * mxfp4.GROUP)), turned=True)
        shapes = {key: tuple(self._slice(key).get_shape()) for key in keys}
        key = next((key for key in keys if shapes[key] != shapes[keys[0]]), keys[0])
        shape = turned(shapes[key]) if weight.transposed else shapes[key]
        return Stored(key, (weight.experts, *shape) if weight.experts else shape, weight.transposed)

    def read(self, weight: Weight, layer: int, cut: Cut) -> np.ndarray:
        """Reads a part of a tensor as it is in the file, or of each expert's; `cut` has a slice for each axis there."""
        keys = self._keys(weight, layer)
        if self._is_mxfp4(weight, keys[0]):
            blocks, scales = (self._raw(keys[0] + part)[cut[:-1]] for part in (mxfp4.BLOCKS, mxfp4.SCALES))
            return mxfp4.dequantised(blocks, scales)[..., cut[-1]]
        if not weight.experts:
            return self._part(keys[0], cut)
        each = [self._part(key, cut[1:]) for key in keys[cut[0]]]
        same = len({one.dtype for one in each}) == 1  # two kinds of 16 bits have none in common that numpy knows
        return np.stack(each if same else [one.astype(np.float32) for one in each])

    @cached_property
    def _opened(self) -> dict[Path, Any]:
        return {path: _open(path) for path in set(self.files.values())}

    @cached_property
    def _base(self) -> str:
        """The prefix that the keys lack of the full names: exports of the bare decoder have no ``model.`` in front."""
        prefix = family_of(self.config).prefix
        return "" if any(key.startswith(prefix) for key in self.files) else prefix

    def _keys(self, weight: Weight, layer: int) -> list[str]:
        return [self._found(key) for key in weight.keys(layer)]

    def _found(self, key: str) -> str:
        """Returns a key as the files spell it."""
        if not self.config.whole:
            return key.removeprefix(self._base)
        names = (
            [_HEADS[0], _HEADS[1]] if key == _HEADS[0] else [one + key.removeprefix("model.") for one in _TEXT_HALVES]
        )
        return next((name for name in names if name in self.files), names[0])

    def _of_no_layer(self, key: str) -> bool:
        """Whether a key is a buffer, or of the tower beside the text half."""
        return bool(_BUFFERS.match(key) or (self.config.whole and TOWER.match(key)))

    def _is_mxfp4(self, weight: Weight, key: str) -> bool:
        """Whether a key is of blocks, as a matrix of all experts in one tensor alone may be."""
        fused = len(weight.shape) == 3 and not weight.experts
        return fused and key not in self.files and key + mxfp4.BLOCKS in self.files

    def _raw(self, key: str) -> Any:
        """Returns a tensor of bytes, of which parts are still to be read."""
        return self._slice(key, ("U8",))

    def _slice(self, key: str, kinds: Sequence[str] = READABLE) -> Any:
        path = self.files[key]
        try:
            found = self._opened[path].get_slice(key)
        except SafetensorError as error:
            raise UserError(f"{path}: weight {key} cannot be read ({error})") from error
        if found.get_dtype() not in kinds:
            raise UserError(f"{path}: weight {key} is {found.get_dtype()}, expected one of {', '.join(kinds)}")
        return found

    def _part(self, key: str, cut: Cut) -> np.ndarray:
        try:
            return self._slice(key)[cut]
        except SafetensorError as error:
            raise UserError(f"{self.files[key]}: weight {key} cannot be read ({error})") from error

    def _tied_head_is_the_table(self) -> bool:
        """Whether a head that config.json calls tied is stored none the less, and equal."""
        head, wanted = next((key for key in _HEADS if key in self.files), None), weights(self.config)[0]
        if not self.config.tie_embeddings or head is None:
            return False
        table = self._keys(wanted, 0)[0]
        if table in self.files and not self._equal(head, table, wanted.shape):
            raise UserError(f"{self.where}: {head} differs from {table}, but config.json says tie_word_embeddings")
        return True

    def _equal(self, one: str, other: str, shape: tuple[int, ...]) -> bool:
        shapes = {tuple(self._slice(key).get_shape()) for key in (one, other)}
        if shapes != {shape}:
            return len(shapes) == 1
        return all(np.array_equal(self._part(one, cut), self._part(other, cut)) for cut in parts(whole(shape)))

    def _no_weights(self) -> UserError:
        pickles = sorted(path.name for path in self.where.iterdir() if path.suffix in REFUSED)
        if pickles:
            return UserError(f"{self.where / pickles[0]}: a pickle that can run code, expected *.safetensors")
        others = sorted(path.name for path in self.where.glob("*.safetensors"))
        if others:
            shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            return UserError(
                f"{self.where}: holds {shown}, expected model.safetensors, or model.safetensors.index.json, which says "
                "what is in which file"
            )
        return UserError(f"{self.where}: no weights in this folder, expected *.safetensors{_instead(self.where)}")


def read_config(folder: Path) -> ModelConfig:
    """Reads config.json, and the tokens that end a text from generation_config.json where that has them.

    Raises:
        UserError: No config.json, or one that the decoder cannot compute.
    """
    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: holds an adapter (adapter_config.json), expected a base and adapter={folder}")
    if not path.is_file():
        raise UserError(f"{folder}: no config.json in this folder, expected a Hugging Face model{_instead(folder)}")
    raw = read_json(path)
    generation = folder / "generation_config.json"
    ends = read_json(generation).get("eos_token_id") if generation.is_file() else None
    if ends is None:
        return from_hf(raw, str(path))
    return with_ends(from_hf({**raw, "eos_token_id": None}, str(path)), ends, str(generation))


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
        save_file(tensors, folder / name, metadata={"format": "pt"})
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


def _open(path: Path) -> Any:
    check_regular(path)
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _instead(folder: Path) -> str:
    """Returns a hint at another model in a folder: its one GGUF file, or its newest checkpoint."""
    packed = sorted(folder.glob("*.gguf"))
    if len(packed) > 1:
        return f", or one of its .gguf files: {', '.join(path.name for path in packed)}"
    steps = [path for path in folder.glob("checkpoint-*") if (path / "config.json").is_file()]
    steps.sort(key=lambda path: (len(path.name), path.name))
    meant = packed[:1] or steps[-1:]
    return f" (did you mean '{meant[0]}'?)" if meant else ""
