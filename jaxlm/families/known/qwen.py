"""Qwen2 and 2.5, with biases at q, k and v; Qwen3, with norms of q and k instead."""

from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, read_layer_types, read_window, write_decoder, write_layer_types
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, decoder_settings
from jaxlm.families.rope import RopeConfig
from jaxlm.families.settings import Settings, is_whole


def _sliding(settings: Settings) -> dict[str, Any]:
    """Reads the window, and the layers that it applies to."""
    pattern, slides = read_layer_types(settings), settings.flag("use_sliding_window", False)
    if settings.is_null("sliding_window") or not slides:
        if any(pattern or ()):
            raise settings.fail("layer_types", "full attention in every layer: use_sliding_window is not true")
        return {}
    if pattern is None:
        first = settings.get("max_window_layers", 28)
        if not is_whole(first):
            raise settings.fail("max_window_layers", "a number of layers")
        pattern = tuple(layer >= first for layer in range(settings.count("num_hidden_layers")))
    return {"sliding_window": read_window(settings), "sliding_pattern": pattern}


def _write_sliding(config: ModelConfig) -> dict[str, Any]:
    slides = config.sliding_window is not None
    window = {"sliding_window": config.sliding_window} if slides else {}
    return window | write_layer_types(config) | {"use_sliding_window": slides}


def _read_qwen2(settings: Settings) -> ModelConfig:
    return read_decoder(settings, "qwen2", qkv_bias=True, **_sliding(settings))


def _read_qwen3(settings: Settings) -> ModelConfig:
    bias = settings.flag("attention_bias", False)
    return read_decoder(settings, "qwen3", head_dim=128, qkv_bias=bias, o_bias=bias, qk_norm=True, **_sliding(settings))


_IDLE = frozenset({"sliding_window", "max_window_layers"})  # where no layer slides
QWEN2 = Family(
    name="qwen2",
    model_type="qwen2",
    causal_lm="Qwen2ForCausalLM",
    wholes={"qwen2_5_vl": "qwen2_5_vl_text"},
    read=_read_qwen2,
    write=lambda config: write_decoder(config) | _write_sliding(config),
    example=example("qwen2", qkv_bias=True, tie_embeddings=True, rope=RopeConfig(1_000_000.0)),
    idle=_IDLE,
    heads="share",
    gguf=GGUFFormat("qwen2", decoder_settings),
)
QWEN3 = Family(
    name="qwen3",
    model_type="qwen3",
    causal_lm="Qwen3ForCausalLM",
    relatives=dict.fromkeys(
        ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
        "most of whose layers are gated delta nets, which are not implemented",
    ),
    wholes={"qwen3_vl": "qwen3_vl_text"},
    read=_read_qwen3,
    write=lambda config: write_decoder(config) | {"attention_bias": config.o_bias} | _write_sliding(config),
    example=example("qwen3", qk_norm=True, head_dim=32, rope=RopeConfig(1_000_000.0)),
    idle=_IDLE,
    gguf=GGUFFormat("qwen3", decoder_settings),
)
