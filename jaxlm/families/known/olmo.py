"""OLMo 2, whose norms are behind attention and MLP, and over all queries; OLMo 3, most of whose layers slide."""

from dataclasses import replace
from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import (
    read_decoder,
    read_layer_types,
    read_window,
    write_decoder,
    write_layer_types,
)
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata, decoder_settings, layer_types
from jaxlm.families.rope import RopeConfig
from jaxlm.families.rope_settings import read_rope, write_scaling
from jaxlm.families.settings import Settings

_SWITCHES: dict[str, Any] = {"pre_norms": False, "post_norms": True, "qk_norm": True, "wide_qk_norm": True}
_THETA = 500_000.0
_GGUF_NAMES = {
    "layers.post_attention_layernorm": "blk.{i}.post_attention_norm",
    "layers.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
}


def _read(settings: Settings, family: str, **switches: Any) -> ModelConfig:
    bias = settings.flag("attention_bias", False)
    tokens = (None, 50_279, 1)
    return read_decoder(settings, family, tokens=tokens, eps=1e-5, qkv_bias=bias, o_bias=bias, **_SWITCHES, **switches)


def _read_olmo3(settings: Settings) -> ModelConfig:
    by_kind = Settings(settings.section("rope_parameters"), f"{settings.where}: rope_parameters")
    pattern = read_layer_types(settings)
    if pattern is None:
        pattern = tuple((layer + 1) % 4 != 0 for layer in range(settings.count("num_hidden_layers")))
    config = _read(
        settings,
        "olmo3",
        theta=_THETA,
        rope={**settings.section("rope_scaling"), **by_kind.section("full_attention")},
        sliding_window=read_window(settings),
        sliding_pattern=pattern,
    )
    # Layers that slide turn as the others did before their context was stretched.
    local = read_rope(settings, by_kind.section("sliding_attention"), config.rope.theta)
    return config if local == config.rope else replace(config, rope_local=local)


def _write(config: ModelConfig) -> dict[str, Any]:
    return {**write_decoder(config), "attention_bias": config.o_bias}


def _write_olmo3(config: ModelConfig) -> dict[str, Any]:
    local = config.rope if config.rope_local is None else config.rope_local
    kinds, most = {"full_attention": config.rope, "sliding_attention": local}, config.max_position
    return {
        **_write(config),
        "sliding_window": config.sliding_window,
        **write_layer_types(config),
        # transformers 4 reads the keys at the top; 5 would take them for the full layers alone.
        "rope_parameters": {
            kind: {"rope_theta": rope.theta, **write_scaling(rope, most)} for kind, rope in kinds.items()
        },
    }


def _read_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata)
    if window := metadata.get("attention.sliding_window"):
        raw |= {"model_type": "olmo3", "sliding_window": window, "layer_types": layer_types(metadata, 4)}
    return raw


OLMO2 = Family(
    name="olmo2",
    model_type="olmo2",
    causal_lm="Olmo2ForCausalLM",
    read=lambda settings: _read(settings, "olmo2"),
    write=_write,
    example=example("olmo2", rope=RopeConfig(_THETA), norm_eps=1e-5, **_SWITCHES),
    gguf=GGUFFormat("olmo2", _read_gguf, names=_GGUF_NAMES),
)
OLMO3 = Family(
    name="olmo3",
    model_type="olmo3",
    causal_lm="Olmo3ForCausalLM",
    read=_read_olmo3,
    write=_write_olmo3,
    example=example(
        "olmo3",
        rope=RopeConfig(_THETA, "linear", factor=8.0),
        rope_local=RopeConfig(_THETA),
        sliding_window=8,
        sliding_pattern=(True, True, False),
        norm_eps=1e-5,
        **_SWITCHES,
    ),
)
