"""Gemma 2 and 3, text only: norms on both sides of each part, and layers that slide.

Of Gemma 2 every other layer slides, and scores and logits are bounded; of Gemma 3 most slide, at a rate of rotation of
their own.
"""

from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import (
    read_decoder,
    read_layer_types,
    read_softcap,
    read_window,
    write_decoder,
    write_layer_types,
)
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata, decoder_settings, layer_types
from jaxlm.families.rope import RopeConfig
from jaxlm.families.rope_settings import read_rope
from jaxlm.families.settings import Settings

_ACTIVATION = "hidden_activation"
_ATTENTION_CAP, _LOGIT_CAP = "attn_logit_softcapping", "final_logit_softcapping"
GGUF_NORMS = {
    "layers.post_attention_layernorm": "blk.{i}.post_attention_norm",
    "layers.pre_feedforward_layernorm": "blk.{i}.ffn_norm",
    "layers.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
}


def _query_scale(raw: dict[str, Any], metadata: GGUFMetadata, layers: int) -> int:
    """The 27B, which has so many layers, scales its queries by width over heads; the others by the head."""
    wide = metadata.get("block_count") == layers
    scale: int = raw["hidden_size"] // raw["num_attention_heads"] if wide else raw["head_dim"]
    return scale


_GEMMA2: dict[str, Any] = {"norm_offset": 1.0, "post_norms": True}


def _read_2(settings: Settings) -> ModelConfig:
    pattern = read_layer_types(settings)
    if pattern is None:
        pattern = tuple(layer % 2 == 0 for layer in range(settings.count("num_hidden_layers")))
    bias = settings.flag("attention_bias", False)
    return read_decoder(
        settings,
        "gemma2",
        tokens=(2, 1, 0),
        kv_heads=4,
        head_dim=256,
        activation=(_ACTIVATION, "gelu_pytorch_tanh"),
        tied=True,
        qkv_bias=bias,
        o_bias=bias,
        sliding_window=read_window(settings),
        sliding_pattern=pattern,
        embed_scale=settings.count("hidden_size") ** 0.5,
        attention_scale=settings.number("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=read_softcap(settings, _ATTENTION_CAP, 50.0),
        logit_softcap=read_softcap(settings, _LOGIT_CAP, 30.0),
        **_GEMMA2,
    )


def _write_2(config: ModelConfig) -> dict[str, Any]:
    assert config.attention_scale is not None
    return {
        **write_decoder(config, _ACTIVATION),
        "attention_bias": config.o_bias,
        "sliding_window": config.sliding_window,
        **write_layer_types(config),
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        _ATTENTION_CAP: config.attention_softcap,
        _LOGIT_CAP: config.logit_softcap,
    }


def _read_gguf_2(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata)
    if "head_dim" not in raw:
        return raw
    raw["query_pre_attn_scalar"] = _query_scale(raw, metadata, 46)
    raw |= {_ATTENTION_CAP: metadata.get(_ATTENTION_CAP, 50.0), _LOGIT_CAP: metadata.get(_LOGIT_CAP, 30.0)}
    return raw | {
        "sliding_window": metadata.get("attention.sliding_window", 4096),
        "layer_types": layer_types(metadata, 2),
    }


GEMMA2 = Family(
    name="gemma2",
    model_type="gemma2",
    causal_lm="Gemma2ForCausalLM",
    read=_read_2,
    write=_write_2,
    example=example(
        "gemma2",
        head_dim=32,
        num_kv_heads=1,
        activation="gelu_tanh",
        sliding_window=8,
        sliding_pattern=(True, False, True),
        embed_scale=8.0,
        attention_scale=24.0**-0.5,
        attention_softcap=2.0,
        logit_softcap=1.0,
        tie_embeddings=True,
        **_GEMMA2,
    ),
    computes=frozenset({_ATTENTION_CAP, _LOGIT_CAP}),
    idle=frozenset({"hidden_act"}),  # older files have it beside the key that counts
    heads="divide",
    gguf=GGUFFormat("gemma2", _read_gguf_2, names=GGUF_NORMS),
)


_GEMMA3: dict[str, Any] = {"norm_offset": 1.0, "qk_norm": True, "post_norms": True}


def _read_3(settings: Settings) -> ModelConfig:
    by_kind = Settings(settings.section("rope_parameters"), f"{settings.where}: rope_parameters")
    pattern = read_layer_types(settings)
    if pattern is None:
        period = settings.count("sliding_window_pattern", 6)
        pattern = tuple((layer + 1) % period != 0 for layer in range(settings.count("num_hidden_layers")))
    bias = settings.flag("attention_bias", False)
    return read_decoder(
        settings,
        "gemma3",
        tokens=(2, 1, 0),
        kv_heads=4,
        head_dim=256,
        theta=1_000_000.0,
        activation=(_ACTIVATION, "gelu_pytorch_tanh"),
        tied=True,
        rope={**settings.section("rope_scaling"), **by_kind.section("full_attention")},
        rope_local=read_rope(
            settings, by_kind.section("sliding_attention"), settings.number("rope_local_base_freq", 10_000.0)
        ),
        qkv_bias=bias,
        o_bias=bias,
        sliding_window=read_window(settings),
        sliding_pattern=pattern,
        embed_scale=settings.count("hidden_size") ** 0.5,
        attention_scale=settings.number("query_pre_attn_scalar", 256) ** -0.5,
        logit_softcap=read_softcap(settings, _LOGIT_CAP, None),
        **_GEMMA3,
    )


def _write_3(config: ModelConfig) -> dict[str, Any]:
    assert config.rope_local is not None and config.attention_scale is not None
    return {
        **write_decoder(config, _ACTIVATION),
        "attention_bias": config.o_bias,
        "sliding_window": config.sliding_window,
        **write_layer_types(config),
        "rope_local_base_freq": config.rope_local.theta,
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        _LOGIT_CAP: config.logit_softcap,
    }


def _read_gguf_3(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata, 1_000_000.0)
    if "head_dim" not in raw:
        return raw
    raw["query_pre_attn_scalar"] = _query_scale(raw, metadata, 62)
    raw["sliding_window"] = metadata.get("attention.sliding_window", 1024)
    raw["rope_local_base_freq"] = metadata.get("rope.freq_base_swa", 10_000.0)
    period = metadata.get("attention.sliding_window_pattern")
    if isinstance(period, list):
        raw["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in period]
    elif period is not None:
        raw["sliding_window_pattern"] = period
    return raw


GEMMA3 = Family(
    name="gemma3",
    model_type="gemma3_text",
    causal_lm="Gemma3ForCausalLM",
    read=_read_3,
    write=_write_3,
    example=example(
        "gemma3",
        head_dim=32,
        num_kv_heads=1,
        activation="gelu_tanh",
        rope=RopeConfig(1_000_000.0, "linear", factor=8.0),
        rope_local=RopeConfig(10_000.0),
        sliding_window=8,
        sliding_pattern=(True, True, False),
        embed_scale=8.0,
        attention_scale=24.0**-0.5,
        tie_embeddings=True,
        **_GEMMA3,
    ),
    computes=frozenset({_LOGIT_CAP}),
    idle=frozenset({"_sliding_window_pattern"}),
    wholes={"gemma3": "gemma3_text"},
    heads="divide",
    config_class="Gemma3TextConfig",
    gguf=GGUFFormat("gemma3", _read_gguf_3, names=GGUF_NORMS),
)
