"""GLM-4: part of a head rotates, in neighbouring pairs; models of April 2025 (`glm4`) also norm behind each part."""

from dataclasses import replace
from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, write_decoder
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata, biases, decoder_settings
from jaxlm.families.known.gemma import GGUF_NORMS
from jaxlm.families.rope import RopeConfig
from jaxlm.families.settings import Settings

_SWITCHES: dict[str, Any] = {"fused_gate_up": True, "rope_interleaved": True}
_ENDS = (151_329, 151_336, 151_338)
_PART = "partial_rotary_factor"


def _read(settings: Settings, family: str, **switches: Any) -> ModelConfig:
    rope = {**settings.section("rope_scaling"), **settings.section("rope_parameters")}
    part = 1.0 if settings.is_null(_PART) else settings.number(_PART, 0.5)
    config = read_decoder(
        settings,
        family,
        tokens=(None, None, _ENDS[0]),
        kv_heads=2,
        head_dim=128,
        max_position=131_072,
        eps=1.5625e-7,
        rope={_PART: part, **rope},
        rotates_part=True,
        qkv_bias=settings.flag("attention_bias", True),
        **_SWITCHES,
        **switches,
    )
    return config if config.eos_ids else replace(config, eos_ids=_ENDS)


def _write(config: ModelConfig) -> dict[str, Any]:
    return {**write_decoder(config), "attention_bias": config.qkv_bias, _PART: config.rope.partial}


def _read_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata, rotates_part=True)
    return {_PART: 1.0, **raw, "attention_bias": biases(metadata)["attention_bias"]}


GLM = Family(
    name="glm",
    model_type="glm",
    causal_lm="GlmForCausalLM",
    read=lambda settings: _read(settings, "glm"),
    write=_write,
    example=example("glm", qkv_bias=True, rope=RopeConfig(partial=0.5), **_SWITCHES),
    computes=frozenset({_PART}),
    relatives={"chatglm": "whose modelling file is its own; expected 'glm', as of glm-4-9b-chat-hf"},
)
GLM4 = Family(
    name="glm4",
    model_type="glm4",
    causal_lm="Glm4ForCausalLM",
    read=lambda settings: _read(settings, "glm4", post_norms=True),
    write=_write,
    example=example("glm4", qkv_bias=True, rope=RopeConfig(partial=0.5), post_norms=True, **_SWITCHES),
    computes=frozenset({_PART}),
    relatives={"glm4_moe": "a mixture of experts; expected 'glm4'"},
    modules={
        "post_attention_layernorm": "post_self_attn_layernorm",
        "pre_feedforward_layernorm": "post_attention_layernorm",
        "post_feedforward_layernorm": "post_mlp_layernorm",
    },
    gguf=GGUFFormat("glm4", _read_gguf, names=GGUF_NORMS),
)
