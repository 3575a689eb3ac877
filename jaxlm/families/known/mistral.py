"""Mistral: Llama without biases, whose layers all slide, and which GGUF calls llama; Ministral, of which some do."""

from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, read_layer_types, read_window, write_decoder, write_layer_types
from jaxlm.families.family import Family, example
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
