"""GGUF's names and metadata, as llama.cpp's converter writes them, with its loader's defaults.

Sources: llama.cpp's ``convert_hf_to_gguf.py`` and ``llama-model.cpp``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlm.families.rope import RopeConfig, inverse_frequencies
from jaxrun.process.errors import UserError

NAMES = {
    "embed_tokens": "token_embd",
    "embed_positions": "position_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "layers.self_attn.c_attn": "blk.{i}.attn_qkv",
    "layers.self_attn.q_proj": "blk.{i}.attn_q",
    "layers.self_attn.k_proj": "blk.{i}.attn_k",
    "layers.self_attn.v_proj": "blk.{i}.attn_v",
    "layers.self_attn.o_proj": "blk.{i}.attn_output",
    "layers.self_attn.q_norm": "blk.{i}.attn_q_norm",
    "layers.self_attn.k_norm": "blk.{i}.attn_k_norm",
    "layers.mlp.gate_proj": "blk.{i}.ffn_gate",
    "layers.mlp.up_proj": "blk.{i}.ffn_up",
    "layers.mlp.down_proj": "blk.{i}.ffn_down",
    "layers.input_layernorm": "blk.{i}.attn_norm",
    "layers.post_attention_layernorm": "blk.{i}.ffn_norm",
}
"""Modules of `Transformer` -> names of tensors, for most families."""
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class GGUFMetadata:
    """The metadata of a GGUF file.

    Attributes:
        where: The file.
        architecture: Its name of the family.
        values: Metadata by key.
        tensors: Its tensors by name.
        asked: Keys, without the architecture in front, whose values were asked for.
    """

    where: Any
    architecture: str
    values: Mapping[str, Any]
    tensors: Mapping[str, Any]
    asked: set[str] = field(default_factory=set)

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a value of this architecture; floats as written before they became 32 bits."""
        self.asked.add(key)
        value = self.values.get(f"{self.architecture}.{key}", default)
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def rope_scaling(self) -> dict[str, Any] | None:
        """Returns the rotary scaling as config.json has it."""
        scaling = self.get("rope.scaling.type")
        if scaling not in (None, "none"):
            return {"rope_type": scaling, "factor": self.get("rope.scaling.factor")}
        if ROPE_FACTORS not in self.tensors:
            return None
        # Llama 3.1's scaling is stored as a divisor of each frequency; find the numbers it came from.
        factors = np.asarray(self.tensors[ROPE_FACTORS].data, np.float32)
        theta, factor = self.get("rope.freq_base", 10_000.0), float(np.max(factors))
        head_dim = 2 * factors.size
        plain = inverse_frequencies(RopeConfig(theta), head_dim)
        for original in (8192, self.get("rope.scaling.original_context_length", 8192)):
            guess = RopeConfig(theta, "llama3", factor, 1.0, 4.0, original)
            if np.allclose(plain / inverse_frequencies(guess, head_dim), factors, rtol=1e-3):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": original,
                }
        raise UserError(f"{self.where}: weight {ROPE_FACTORS} holds a rotary scaling that is not Llama 3.1's")


@dataclass(frozen=True)
class GGUFFormat:
    """The storage of a family in GGUF.

    Attributes:
        architecture: Its name of the family.
        read: The keys of config.json that the metadata comes to, but for the vocabulary's.
        names: Names of tensors, where other than `NAMES`.
        pairs: Whether rows of q and k are stored in pairs that rotate together, rather than in two halves of a head.
    """

    architecture: str
    read: Callable[[GGUFMetadata], dict[str, Any]]
    names: Mapping[str, str] = field(default_factory=dict)
    pairs: bool = False

    def name(self, module: str) -> str:
        """Returns the name, with ``{i}`` for the layer, of a module of `Transformer` such as ``layers.mlp.up_proj``."""
        return {**NAMES, **self.names}[module]


def decoder_settings(metadata: GGUFMetadata, theta: float = 10_000.0) -> dict[str, Any]:
    """Returns the keys of config.json that families of Llama's kind share.

    Args:
        metadata: Of the file.
        theta: Of the rotation, where the file does not say it.

    Raises:
        UserError: A head of which only a part rotates.
    """
    hidden, heads = metadata.get("embedding_length"), metadata.get("attention.head_count")
    if not all(isinstance(count, int) and count > 0 for count in (hidden, heads)):
        return {"hidden_size": hidden, "num_attention_heads": heads}
    head_dim = metadata.get("attention.key_length") or metadata.get("rope.dimension_count", hidden // heads)
    if (rotated := metadata.get("rope.dimension_count", head_dim)) != head_dim:
        raise UserError(f"{metadata.where}: only {rotated} of {head_dim} head dimensions rotate, expected all of them")
    return {
        "hidden_size": hidden,
        "intermediate_size": metadata.get("feed_forward_length"),
        "num_hidden_layers": metadata.get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("attention.head_count_kv", heads),
        "max_position_embeddings": metadata.get("context_length"),
        "rms_norm_eps": metadata.get("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.get("rope.freq_base", theta),
        "rope_scaling": metadata.rope_scaling(),
        "head_dim": head_dim,
    }


def biases(metadata: GGUFMetadata) -> dict[str, Any]:
    """Returns the keys of config.json that say where biases are, which GGUF has no keys for."""
    return {
        "attention_bias": "blk.0.attn_q.bias" in metadata.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in metadata.tensors,
    }


def layer_types(metadata: GGUFMetadata, period: int) -> list[str]:
    """Returns ``layer_types`` of config.json.

    Args:
        metadata: Of the file: it says of each layer whether it slides, or which of how many does not.
        period: Of how many, where the file does not say it.
    """
    given, layers = metadata.get("attention.sliding_window_pattern", period), metadata.get("block_count")
    if not isinstance(given, list):
        given = [(layer + 1) % int(given) != 0 for layer in range(int(layers))]
    return ["sliding_attention" if slides else "full_attention" for slides in given]
