"""Mistral: Llama without biases, whose layers all slide, and which GGUF calls llama; Ministral, of which some do.

Ministral 3 stretches its context, and multiplies queries beyond the old one.
"""

from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, read_layer_types, read_window, write_decoder, write_layer_types
from jaxlm.families.family import Family, example
from jaxlm.families.rope import RopeConfig
from jaxlm.families.rope_settings import write_scaling
from jaxlm.families.settings import Settings


def _read(settings: Settings) -> ModelConfig:
    return read_decoder(settings, "mistral", tokens=(1, 2, None), kv_heads=8, sliding_window=read_window(settings))


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_decoder(config) | {"sliding_window": config.sliding_window}


MISTRAL = Family(
    name="mistral",
    model_type="mistral",
    causal_lm="MistralForCausalLM",
    wholes={"mistral3": "mistral"},
    read=_read,
    write=_write,
    example=example("mistral", sliding_window=8, norm_eps=1e-5),
)


def _read_ministral(settings: Settings) -> ModelConfig:
    pattern, window = read_layer_types(settings), read_window(settings)
    if window is None and pattern is not None and any(pattern):
        raise settings.fail("layer_types", "full_attention alone without sliding_window")
    slides: dict[str, Any] = {} if window is None else {"sliding_window": window, "sliding_pattern": pattern}
    return read_decoder(settings, "ministral", tokens=(1, 2, None), kv_heads=8, **slides)


MINISTRAL = Family(
    name="ministral",
    model_type="ministral",
    causal_lm="MinistralForCausalLM",
    read=_read_ministral,
    write=lambda config: _write(config) | write_layer_types(config),
    example=example("ministral", sliding_window=8, sliding_pattern=(True, False, True), norm_eps=1e-5),
)


_GROWTH = "llama_4_scaling_beta"
_YARN = {
    "type": "yarn",
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
"""Where config.json has no rotation."""


def _read_ministral3(settings: Settings) -> ModelConfig:
    given = {**settings.section("rope_scaling"), **settings.section("rope_parameters")}
    rope = Settings(given or {**_YARN, _GROWTH: 0.1}, f"{settings.where}: rope scaling")
    config = read_decoder(
        settings,
        "ministral3",
        tokens=(1, 2, 11),
        kv_heads=8,
        head_dim=None if settings.is_null("head_dim") else 128,
        max_position=262_144,
        theta=1_000_000.0,
        eps=1e-5,
        rope=rope.raw,
        query_growth=rope.number(_GROWTH, 0.0),
        sliding_window=None if settings.get("sliding_window") is None else read_window(settings),
    )
    if config.rope.scaling != "yarn":
        raise rope.fail("rope_type", "yarn, whose old context length says where queries grow")
    return config


def _write_ministral3(config: ModelConfig) -> dict[str, Any]:
    rope = {"rope_theta": config.rope.theta, **write_scaling(config.rope, config.max_position)}
    return _write(config) | {"rope_scaling": None, "rope_parameters": {**rope, _GROWTH: config.query_growth}}


MINISTRAL3 = Family(
    name="ministral3",
    model_type="ministral3",
    causal_lm="Ministral3ForCausalLM",
    read=_read_ministral3,
    write=_write_ministral3,
    example=example(
        "ministral3",
        rope=RopeConfig(1_000_000.0, "yarn", factor=16.0, original_max_position=8),
        query_growth=0.1,
        norm_eps=1e-5,
    ),
    wholes={"mistral3": "ministral3"},
)
