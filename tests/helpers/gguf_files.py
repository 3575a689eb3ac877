"""Writes GGUF files as llama.cpp's converter does, with the names of the gguf package's own table."""

import re
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file

from jaxlm.families.config import ModelConfig
from jaxlm.families.rope import RopeConfig, inverse_frequencies

ARCHITECTURES = {
    "mistral": "llama",
    "olmo3": "olmo2",
    "cohere": "command-r",
    "qwen3_moe": "qwen3moe",
    "mixtral": "llama",
}
PAIRS = ("llama", "smollm3", "granite")


def write_gguf(path: Path, folder: Path, config: ModelConfig, kind=Kind.F32, *, raw=None, extra=None, most=0) -> None:
    """Converts a saved model.

    Args:
        path: The file to write.
        folder: A model folder with one safetensors file.
        config: The folder's config.
        kind: How to store every matrix.
        raw: Kind and bytes [rows, bytes] of matrices to store as they are, by GGUF name.
        extra: More tensors by name.
        most: Tensors of a part, where it is written in parts.
    """
    architecture = ARCHITECTURES.get(config.family, config.family)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=most)
    write_metadata(writer, config)
    model = next(model for model, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(model, config.num_layers)
    for key, value in joined(load_file(folder / "model.safetensors")).items():
        name = table.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name is not None, key
        stored = Kind.F32 if value.ndim == 1 else kind
        value = gguf.quants.quantize(rearranged(architecture, config, key, value), stored)
        stored, value = (raw or {}).get(name, (stored, value))
        writer.add_tensor(name, value, raw_dtype=stored)
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def joined(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of which those of a layer's experts are one."""
    found: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    for key, value in tensors.items():
        if named := re.fullmatch(r"(.*\.experts\.)(\d+)\.(.*)", key):
            experts.setdefault(named[1] + named[3], {})[int(named[2])] = value
        else:
            found[key] = value
    return found | {key: np.stack([each[one] for one in sorted(each)]) for key, each in experts.items()}


def rearranged(architecture: str, config: ModelConfig, key: str, value: np.ndarray) -> np.ndarray:
    """What the converter does to one weight."""
    if architecture in PAIRS and ("q_proj" in key or "k_proj" in key):
        heads = config.num_heads if "q_proj" in key else config.num_kv_heads
        halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))
    if architecture in ("gemma2", "gemma3") and key.endswith("norm.weight"):
        return value + np.float32(1)
    if key.endswith("conv.conv.weight"):
        return value[:, 0]
    if architecture == "gpt2" and value.ndim == 2 and ".h." in key:
        return np.ascontiguousarray(value.T)
    return value


def write_metadata(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_context_length(config.max_position)
    writer.add_bos_token_id(config.bos_id)
    writer.add_eos_token_id(config.eos_ids[0])
    writer.add_pad_token_id(config.pad_id)
    if config.norm == "layer":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.positions == "learned":
        return
    if config.conv_taps:
        conv = {layer for one in config.others for layer in one.layers}
        writer.add_head_count_kv([0 if layer in conv else config.num_kv_heads for layer in range(config.num_layers)])
        writer.add_shortconv_l_cache(config.conv_taps)
    else:
        writer.add_head_count_kv(config.num_kv_heads)
    if config.rope.partial == 1.0:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    else:
        writer.add_rope_dimension_count(config.rope.rotated(config.head_dim))
    writer.add_rope_freq_base(config.rope.theta)
    if config.family == "granite":
        writer.add_embedding_scale(config.embed_scale)
        writer.add_attention_scale(config.attention_scale)
        writer.add_residual_scale(config.residual_scale)
        writer.add_logit_scale(1 / config.logit_scale)
    elif config.logit_scale != 1.0:
        writer.add_logit_scale(config.logit_scale)
    if config.routed:
        writer.add_expert_count(config.experts)
        writer.add_expert_used_count(config.active_experts)
        if config.family != "mixtral":
            writer.add_expert_feed_forward_length(config.intermediate_size)
    if config.attention_softcap is not None:
        writer.add_attn_logit_softcapping(config.attention_softcap)
    if config.logit_softcap is not None:
        writer.add_final_logit_softcapping(config.logit_softcap)
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
    if config.sliding_pattern is not None:
        writer.add_sliding_window_pattern(list(config.sliding_pattern))
    if config.rope.scaling == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope.factor)
    elif config.rope.scaling == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope.factor)
        writer.add_rope_scaling_orig_ctx_len(config.rope.original_max_position)
    elif config.rope.scaling == "longrope":
        writer.add_rope_scaling_orig_ctx_len(config.rope.original_max_position)
        writer.add_rope_scaling_attn_factors(config.rope.attention_factor)
        for name, factors in (("long", config.rope.long_factors), ("short", config.rope.short_factors)):
            writer.add_tensor(f"rope_factors_{name}.weight", np.asarray(factors, np.float32))


def rope_factors(config: ModelConfig) -> np.ndarray:
    """What llama.cpp stores of Llama 3.1's scaling: by what each frequency is divided."""
    plain = inverse_frequencies(RopeConfig(config.rope.theta), config.head_dim)
    return (plain / inverse_frequencies(config.rope, config.head_dim)).astype(np.float32)
