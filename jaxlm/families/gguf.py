"""GGUF's names and metadata, as llama.cpp's converter writes them, with its loader's defaults.

Sources: llama.cpp's ``convert_hf_to_gguf.py`` and ``llama-model.cpp``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlm.families.rope import RopeConfig, inverse_frequencies
from jaxlm.families.rope_settings import longrope_attention, yarn_attention
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
    "layers.mlp.gate_up_proj": "blk.{i}.ffn_up",
    "layers.mlp.gate_proj": "blk.{i}.ffn_gate",
    "layers.mlp.up_proj": "blk.{i}.ffn_up",
    "layers.mlp.down_proj": "blk.{i}.ffn_down",
    "layers.input_layernorm": "blk.{i}.attn_norm",
    "layers.post_attention_layernorm": "blk.{i}.ffn_norm",
}
"""Modules of `Transformer` -> names of tensors, for most families."""
ROPE_FACTORS = "rope_freqs.weight"
LONGROPE_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}


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
        if scaling == "longrope" or not LONGROPE_FACTORS.values() - self.tensors.keys():
            return self._longrope()
        if scaling == "yarn":
            return self._yarn()
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

    def _longrope(self) -> dict[str, Any]:
        found: dict[str, Any] = {"rope_type": "longrope"}
        for key, name in LONGROPE_FACTORS.items():
            if name in self.tensors:
                found[key] = [float(str(factor)) for factor in np.asarray(self.tensors[name].data, np.float32)]
        most, original = self.get("context_length"), self.get("rope.scaling.original_context_length")
        given, whole = self.get("rope.scaling.attn_factor"), isinstance(most, int) and isinstance(original, int)
        usual = longrope_attention(most / original, original) if whole and original > 1 else 0.0
        if given and not (isinstance(given, float) and math.isclose(given, usual, rel_tol=1e-6)):
            found["attention_factor"] = given
        return found | {"original_max_position_embeddings": original}

    def _yarn(self) -> dict[str, Any]:
        found = {
            "rope_type": "yarn",
            "factor": self.get("rope.scaling.factor"),
            "original_max_position_embeddings": self.get("rope.scaling.original_context_length"),
        }
        for key in ("beta_fast", "beta_slow"):
            found[key] = self.get(f"rope.scaling.yarn_{key}")
        # Programs differ on whether it multiplies the factor that follows from the stretching, or is the whole.
        given, factor = self.get("rope.scaling.attn_factor", 1.0), found["factor"]
        usual = yarn_attention(factor) if isinstance(factor, int | float) else 1.0
        if not isinstance(given, float) or not any(math.isclose(given, one, rel_tol=1e-6) for one in (1.0, usual)):
            raise UserError(f"{self.where}: rope.scaling.attn_factor is {given}, expected {usual:.6g}, as yarn has it")
        return found


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

    def key(self, path: str, layer: int) -> str:
        """Returns the name of a layer's tensor, of a weight's path such as ``layers.mlp.up_proj.kernel``."""
        owner, _, kind = path.rpartition(".")
        stack, _, inside = owner.partition(".")
        return self.name(f"layers.{inside}" if inside else stack).format(i=layer) + (
            ".bias" if kind == "bias" else ".weight"
        )

    def rows(self, path: str, width: int, heads: int, kv_heads: int) -> np.ndarray | None:
        """Returns where the file has each row of a weight; None where they are in their own order.

        Args:
            path: The weight's.
            width: Rows of it.
            heads: Query heads.
            kv_heads: Key heads.
        """
        owner = path.rpartition(".")[0]
        if not (self.pairs and owner.endswith((".q_proj", ".k_proj"))):
            return None
        heads = heads if owner.endswith("q_proj") else kv_heads
        return np.arange(width).reshape(heads, width // heads // 2, 2).swapaxes(1, 2).reshape(width)


def decoder_settings(metadata: GGUFMetadata, theta: float = 10_000.0, *, rotates_part: bool = False) -> dict[str, Any]:
    """Returns the keys of config.json that families of Llama's kind share.

    Args:
        metadata: Of the file.
        theta: Of the rotation, where the file does not say it.
        rotates_part: Whether heads of which a part rotates are computed.

    Raises:
        UserError: A head of which only a part rotates.
    """
    hidden, heads = metadata.get("embedding_length"), metadata.get("attention.head_count")
    if not all(isinstance(count, int) and count > 0 for count in (hidden, heads)):
        return {"hidden_size": hidden, "num_attention_heads": heads}
    whole = hidden // heads if rotates_part else metadata.get("rope.dimension_count", hidden // heads)
    head_dim = metadata.get("attention.key_length") or whole
    rotated = metadata.get("rope.dimension_count", head_dim)
    both = isinstance(rotated, int) and isinstance(head_dim, int)
    if rotated != head_dim and not (rotates_part and both and 0 < rotated < head_dim):
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
        **({} if rotated == head_dim else {"partial_rotary_factor": rotated / head_dim}),
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
