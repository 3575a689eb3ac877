"""Small models, adapters and runs as they ought to be, for what damages them."""

import contextlib
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from altojax.adapters.peft_config import AdapterSpec
from altojax.adapters.peft_files import export_adapter
from altojax.adapters.target_modules import match_targets
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import projections
from jaxlm.files.hf import save_model
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import read_model_config
from jaxlm.models.transformer import Transformer

TINY = Path(__file__).parent.parent.parent / "configs" / "tiny"


@cache
def tiny_config() -> ModelConfig:
    return read_model_config(TINY, weights=False)


def write_base(folder: Path) -> Path:
    """A base with weights and a tokenizer."""
    model = Transformer(tiny_config(), dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    save_model(folder, tiny_config(), model, dtype=jnp.float32, tokenizer=load_tokenizer(TINY))
    return folder


def gguf_metadata() -> dict[str, Any]:
    """What a GGUF file of such a base says, tokenizer included."""
    config, tokenizer = tiny_config(), load_tokenizer(TINY)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return {
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.context_length": config.max_position,
        "llama.rope.freq_base": config.rope.theta,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 256 + [3] * (len(tokens) - 256),
        "tokenizer.ggml.eos_token_id": config.eos_ids[0],
        "tokenizer.ggml.padding_token_id": config.pad_id,
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def write_gguf(path: Path, base: Path, metadata: Mapping[str, Any]) -> Path:
    """A GGUF file of a base.

    Raises:
        ValueError: The metadata holds what the format cannot.
    """
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, tiny_config().num_layers)
    with contextlib.closing(gguf.GGUFWriter(path, "llama")) as writer:
        for key, value in metadata.items():
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
        for key, value in load_file(base / "model.safetensors").items():
            writer.add_tensor(names.get_name(key, try_suffixes=(".weight",)), value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return path


def write_adapter(folder: Path) -> Path:
    """An adapter for it, of two projections."""
    config, names = tiny_config(), ["q_proj", "down_proj"]
    modules = match_targets(names, config)
    arrays = {}
    for key in modules:
        one = projections(config)[key]
        a = np.ones((config.num_layers, one.in_features, 2), np.float32)
        arrays[key] = a, np.ones((config.num_layers, 2, one.out_features), np.float32)
    export_adapter(
        folder, AdapterSpec("base", 2, 4.0, False, 0.0, names, modules), arrays, config, load_tokenizer(TINY), {}
    )
    return folder


def copy(folder: Path, to: Path) -> Path:
    """A copy to damage, in place of an earlier one."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to))
