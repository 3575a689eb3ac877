"""Gemma 2, text only: norms on both sides of each part, every other layer slides, scores and logits are bounded."""

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
from jaxlm.families.known.gemma3 import ATTENTION_CAP, GGUF_NORMS, LOGIT_CAP
from jaxlm.families.settings import Settings

_ACTIVATION = "hidden_activation"
_SWITCHES: dict[str, Any] = {"norm_offset": 1.0, "post_norms": True}


def _read(settings: Settings) -> ModelConfig:
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
        attention_softcap=read_softcap(settings, ATTENTION_CAP, 50.0),
        logit_softcap=read_softcap(settings, LOGIT_CAP, 30.0),
        **_SWITCHES,
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    assert config.attention_scale is not None
    return {
        **write_decoder(config, _ACTIVATION),
        "attention_bias": config.o_bias,
        "sliding_window": config.sliding_window,
        **write_layer_types(config),
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        ATTENTION_CAP: config.attention_softcap,
        LOGIT_CAP: config.logit_softcap,
    }


def _read_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata)
    if "head_dim" not in raw:
        return raw
    # The 27B scales its queries by width over heads; the others by the head.
    wide = metadata.get("block_count") == 46
    raw["query_pre_attn_scalar"] = raw["hidden_size"] // raw["num_attention_heads"] if wide else raw["head_dim"]
    raw |= {ATTENTION_CAP: metadata.get(ATTENTION_CAP, 50.0), LOGIT_CAP: metadata.get(LOGIT_CAP, 30.0)}
    return raw | {
        "sliding_window": metadata.get("attention.sliding_window", 4096),
        "layer_types": layer_types(metadata, 2),
    }


GEMMA2 = Family(
    name="gemma2",
    model_type="gemma2",
    causal_lm="Gemma2ForCausalLM",
    read=_read,
    write=_write,
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
        **_SWITCHES,
    ),
    computes=frozenset({ATTENTION_CAP, LOGIT_CAP}),
    idle=frozenset({"hidden_act"}),  # older files have it beside the key that counts
    heads="divide",
    gguf=GGUFFormat("gemma2", _read_gguf, names=GGUF_NORMS),
)
