"""GGUF files: metadata to `ModelConfig`, quantised tensors to floats, llama.cpp's rearrangements undone.

Sources: llama.cpp's ``convert_hf_to_gguf.py`` (what it does to the weights) and ``llama-model.cpp`` (what it assumes
where the metadata is silent).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from jaxlm.families.names import Weight
from jaxlm.families.rope import RopeConfig, inverse_frequencies
from jaxlm.files.gguf_file import open_gguf, read_metadata
from jaxlm.files.hf_config import from_hf
from jaxlm.files.stored import Cut, Stored
from jaxrun.process.errors import UserError, nearest

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3", "gpt2")
_NAMES = {
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
_POST_NORM_NAMES = {
    "layers.post_attention_layernorm": "blk.{i}.post_attention_norm",
    "layers.pre_feedforward_layernorm": "blk.{i}.ffn_norm",
    "layers.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
}
_ROPE_FACTORS = "rope_freqs.weight"
_TOKEN_IDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "padding"))


class GGUFFile:
    """One .gguf file, memory-mapped.

    Attributes:
        where: The file.
        config: What its metadata says.
    """

    def __init__(self, where: Path):
        """Reads the metadata.

        Raises:
            UserError: Not a GGUF file, or a model that the decoder cannot compute.
        """
        self.where = where
        families = (f"{architecture}." for architecture in ARCHITECTURES)
        self._metadata = read_metadata(where, "general.", "split.", *families, *_TOKEN_IDS)
        self._tensors = {tensor.name: tensor for tensor in open_gguf(where).tensors}
        if (parts := self._metadata.get("split.count", 1)) > 1:
            raise UserError(f"{where}: one of {parts} parts, expected them merged into one file (gguf-split --merge)")
        self._architecture = str(self._metadata.get("general.architecture"))
        if self._architecture not in ARCHITECTURES:
            raise UserError(
                f"{where}: architecture is {self._architecture!r}, expected one of {', '.join(ARCHITECTURES)}"
                f"{nearest(self._architecture, ARCHITECTURES)}"
            )
        self.config = from_hf(self._hf_config(), str(where))

    def missing(self, wanted: Iterable[Weight]) -> tuple[list[str], list[str]]:
        """Keys that `wanted` needs and the file lacks; keys that the file holds and nothing needs."""
        needed = {self._key(weight, layer) for weight in wanted for layer in weight.entries}
        spare = {_ROPE_FACTORS, "output.weight"}
        return sorted(needed - self._tensors.keys()), sorted(self._tensors.keys() - needed - spare)

    def find(self, weight: Weight, layer: int) -> Stored:
        """Looks a tensor up without reading it."""
        key = self._key(weight, layer)
        width_first = tuple(int(size) for size in self._tensors[key].shape)
        turned = weight.path.endswith(".kernel")
        return Stored(key, width_first if turned else width_first[::-1], turned)

    def read(self, weight: Weight, layer: int, cut: Cut) -> np.ndarray:
        """Reads a part of a tensor in float, as it lies in the file; `cut` has a slice for each axis there."""
        key = self._key(weight, layer)
        owner, _, kind = weight.path.rpartition(".")
        where: tuple[Any, ...] = cut
        if self._architecture == "llama" and owner.endswith((".q_proj", ".k_proj")):
            heads = self.config.num_heads if owner.endswith("q_proj") else self.config.num_kv_heads
            where = (_unpermuted(weight.shape[-1], heads)[cut[0]], *cut[1:])
        part = self._dequantized(key, where)
        return part - np.float32(1.0) if self._architecture == "gemma3" and kind == "scale" else part

    def _key(self, weight: Weight, layer: int) -> str:
        owner, _, kind = weight.path.rpartition(".")
        names = _NAMES | _POST_NORM_NAMES if self.config.post_norms else _NAMES
        return names[owner].format(i=layer) + (".bias" if kind == "bias" else ".weight")

    def _dequantized(self, key: str, cut: tuple[Any, ...]) -> np.ndarray:
        """The floats at `cut`; blocks lie along the last axis, so that only of the others less is dequantised."""
        tensor = self._tensors[key]
        rows = tensor.data[cut[:-1]]
        if tensor.tensor_type not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            try:
                rows = gguf.quants.dequantize(rows, tensor.tensor_type)
            except NotImplementedError as error:
                raise UserError(
                    f"{self.where}: weight {key} is {tensor.tensor_type.name}, which cannot be dequantised; "
                    "expected F32, F16, BF16, Q8_0, or one of the Q4, Q5 and Q6 kinds"
                ) from error
        return np.asarray(rows[..., cut[-1]])

    def _get(self, key: str, default: Any = None) -> Any:
        """A value of this architecture's metadata; floats as written before they became 32 bits."""
        value = self._metadata.get(f"{self._architecture}.{key}", default)
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def _hf_config(self) -> dict[str, Any]:
        """The config.json that this model would have."""
        if self._get("expert_count"):
            raise UserError(f"{self.where}: a mixture of {self._get('expert_count')} experts, expected a dense model")
        architecture, tokens = self._architecture, self._metadata
        table = self._tensors.get("token_embd.weight")
        ends = [tokens.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
        raw: dict[str, Any] = {
            "model_type": {"gemma3": "gemma3_text"}.get(architecture, architecture),
            "vocab_size": None if table is None else int(table.shape[1]),
            "tie_word_embeddings": self._is_tied(),
            "bos_token_id": tokens.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None)) or None,
            "pad_token_id": tokens.get("tokenizer.ggml.padding_token_id"),
        }
        if architecture == "gpt2":
            return raw | {
                "n_embd": self._get("embedding_length"),
                "n_layer": self._get("block_count"),
                "n_head": self._get("attention.head_count"),
                "n_positions": self._get("context_length"),
                "n_inner": self._get("feed_forward_length"),
                "layer_norm_epsilon": self._get("attention.layer_norm_epsilon"),
            }
        hidden, heads = self._get("embedding_length"), self._get("attention.head_count")
        if not all(isinstance(count, int) and count > 0 for count in (hidden, heads)):
            return raw | {"hidden_size": hidden, "num_attention_heads": heads}
        head_dim = self._get("attention.key_length") or self._get("rope.dimension_count", hidden // heads)
        raw |= {
            "hidden_size": hidden,
            "intermediate_size": self._get("feed_forward_length"),
            "num_hidden_layers": self._get("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._get("attention.head_count_kv", heads),
            "max_position_embeddings": self._get("context_length"),
            "rms_norm_eps": self._get("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._get("rope.freq_base", 1_000_000.0 if architecture == "gemma3" else 10_000.0),
            "rope_scaling": self._rope_scaling(),
            "head_dim": head_dim,
        }
        if self._get("rope.dimension_count", head_dim) != head_dim:
            rotated = self._get("rope.dimension_count")
            raise UserError(f"{self.where}: only {rotated} of {head_dim} head dimensions rotate, expected all of them")
        if architecture == "gemma3":
            # The 27B scales its queries by width over heads; the others by the head.
            wide = self._get("block_count") == 62
            raw["query_pre_attn_scalar"] = hidden // heads if wide else head_dim
            raw["sliding_window"] = self._get("attention.sliding_window", 1024)
            raw["rope_local_base_freq"] = self._get("rope.freq_base_swa", 10_000.0)
            period = self._get("attention.sliding_window_pattern")
            if isinstance(period, list):
                raw["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in period]
            elif period is not None:
                raw["sliding_window_pattern"] = period
        elif architecture == "llama":
            raw["attention_bias"] = "blk.0.attn_q.bias" in self._tensors
            raw["mlp_bias"] = "blk.0.ffn_up.bias" in self._tensors
            if self._get("attention.sliding_window"):
                raw |= {"model_type": "mistral", "sliding_window": self._get("attention.sliding_window")}
        return raw

    def _is_tied(self) -> bool:
        """Whether there is no head of its own, or one that repeats the table."""
        head, table = self._tensors.get("output.weight"), self._tensors.get("token_embd.weight")
        if head is None or table is None:
            return True
        return head.tensor_type == table.tensor_type and np.array_equal(head.data, table.data)

    def _rope_scaling(self) -> dict[str, Any] | None:
        scaling = self._get("rope.scaling.type")
        if scaling not in (None, "none"):
            return {"rope_type": scaling, "factor": self._get("rope.scaling.factor")}
        if _ROPE_FACTORS not in self._tensors:
            return None
        # Llama 3.1's scaling is stored as what it divides each frequency by; find the numbers it came from.
        factors = np.asarray(self._tensors[_ROPE_FACTORS].data, np.float32)
        theta, factor = self._get("rope.freq_base", 10_000.0), float(np.max(factors))
        head_dim = 2 * factors.size
        plain = inverse_frequencies(RopeConfig(theta), head_dim)
        for original in (8192, self._get("rope.scaling.original_context_length", 8192)):
            guess = RopeConfig(theta, "llama3", factor, 1.0, 4.0, original)
            if np.allclose(plain / inverse_frequencies(guess, head_dim), factors, rtol=1e-3):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": original,
                }
        raise UserError(f"{self.where}: weight {_ROPE_FACTORS} holds a rotary scaling that is not Llama 3.1's")


def _unpermuted(rows: int, heads: int) -> np.ndarray:
    """Which row of the file each row is: those of a head lie there in pairs, not in two halves."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)
