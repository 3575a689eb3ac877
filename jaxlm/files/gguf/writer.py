"""Dense decoders of Llama's kind as GGUF files, in the form that llama.cpp reads; read back by whoever writes them.

Names, metadata and the order of rows are those of llama.cpp's ``convert_hf_to_gguf.py``; the file itself is written by
the `gguf` package.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from jaxtyping import Array
from transformers import PreTrainedTokenizerBase

from jaxlm.families.config import ModelConfig
from jaxlm.families.gguf import ROPE_FACTORS
from jaxlm.families.names import weights as weights_of
from jaxlm.families.registry import by_architecture
from jaxlm.families.rope import RopeConfig, inverse_frequencies
from jaxlm.files.gguf.describe_tokenizer import describe_tokenizer
from jaxlm.files.gguf.weights import GGUFFile
from jaxrun.files.atomic import user_errors
from jaxrun.process.errors import UserError

KINDS = {
    "float32": gguf.GGMLQuantizationType.F32,
    "float16": gguf.GGMLQuantizationType.F16,
    "bfloat16": gguf.GGMLQuantizationType.BF16,
}
"""Of matrices, by dtype; vectors are float32 always."""
_FILE_TYPES = {"float32": gguf.LlamaFileType.ALL_F32, "float16": gguf.LlamaFileType.MOSTLY_F16}
_FILE_TYPES["bfloat16"] = gguf.LlamaFileType.MOSTLY_BF16
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def gguf_config(config: ModelConfig) -> ModelConfig:
    """Returns the config that a GGUF file of a model has: a Mistral is a Llama there, whose heads need not fill it.

    Raises:
        UserError: A family, a rotation or layers that are not written.
    """
    if config.family not in _ARCHITECTURES:
        raise UserError(f"format: gguf of {config.family}, expected {', '.join(_ARCHITECTURES)}, or format hf")
    if config.others:
        raise UserError("format: gguf with layers of several shapes, expected no protected layers, or format hf")
    if config.sliding_window is not None:
        raise UserError("format: gguf with layers that slide, expected format hf")
    if config.rope.scaling not in ("default", "llama3") or config.rope.partial != 1.0:
        raise UserError(f"format: gguf with a rotation of type {config.rope.scaling}, expected default or llama3")
    if (config.rope.low_freq_factor, config.rope.high_freq_factor) != (1.0, 4.0):
        raise UserError("format: gguf with another stretching of frequencies than Llama 3.1's, expected format hf")
    return replace(config, family=_ARCHITECTURES[config.family])


def write_gguf(
    path: Path,
    config: ModelConfig,
    values: Mapping[str, Array],
    *,
    dtype: str,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
) -> ModelConfig:
    """Writes a model, its metadata and its tokenizer, and reads them back.

    Args:
        path: The file.
        config: The model's shapes.
        values: Its weights by path.
        dtype: Of matrices, one of `KINDS`.
        name: What the model is called.
        tokenizer: Its tokenizer.

    Returns:
        The config as it is in the file.

    Raises:
        UserError: What `gguf_config` or `describe_tokenizer` refuses; a disk that is full or unsound.
    """
    config = gguf_config(config)
    _, form = by_architecture()[config.family]
    described = describe_tokenizer(tokenizer, config)
    writer = gguf.GGUFWriter(path, form.architecture)
    _add_metadata(writer, config, name, dtype)
    for key, value in described.items():
        _add(writer, key, value)
    for weight in weights_of(config):
        for place, layer in enumerate(weight.entries):
            value = values[weight.path] if weight.layers is None else values[weight.path][place]
            tensor = np.asarray(value, np.float32)
            tensor = tensor.T if weight.transposed else tensor
            rows = form.rows(weight.path, weight.shape[-1], config.num_heads, config.num_kv_heads)
            tensor = np.ascontiguousarray(tensor if rows is None else tensor[np.argsort(rows)])
            kind = KINDS["float32" if tensor.ndim == 1 else dtype]
            writer.add_tensor(form.key(weight.path, layer), gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    with user_errors(path):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    _read_back(path, config, values, dtype)
    return config


def _add_metadata(writer: gguf.GGUFWriter, config: ModelConfig, name: str, dtype: str) -> None:
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    if config.rope.scaling == "llama3":
        plain = inverse_frequencies(RopeConfig(config.rope.theta), config.head_dim)
        factors = (plain / inverse_frequencies(config.rope, config.head_dim)).astype(np.float32)
        writer.add_tensor(ROPE_FACTORS, factors)
        writer.add_rope_scaling_orig_ctx_len(config.rope.original_max_position)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        str: writer.add_string,
        list: writer.add_array,
    }
    kinds[type(value)](key, value)


def _read_back(path: Path, config: ModelConfig, values: Mapping[str, Array], dtype: str) -> None:
    """Makes sure that the file is the model.

    Raises:
        UserError: It is not.
    """
    file = GGUFFile(path)
    if replace(file.config, bos_id=config.bos_id, eos_ids=config.eos_ids, pad_id=config.pad_id) != config:
        raise UserError(f"{path}: the config was not read back as it was written, expected format hf")
    for weight in weights_of(config):
        for place, layer in enumerate(weight.entries):
            value = values[weight.path] if weight.layers is None else values[weight.path][place]
            tensor = np.asarray(value, np.float32)
            kind = KINDS["float32" if tensor.ndim == 1 else dtype]
            whole = tuple(slice(0, size) for size in (tensor.T if weight.transposed else tensor).shape)
            read = file.read(weight, layer, whole)
            wanted = gguf.quants.dequantize(gguf.quants.quantize(tensor, kind), kind)
            if not np.array_equal(read.T if weight.transposed else read, wanted):
                raise UserError(f"{path}: {weight.path} was not read back as it was written, expected a sound disk")
