"""Mistral: Llama without biases, whose layers all slide; GGUF calls it llama."""

from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, read_window, write_decoder
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
    read=_read,
    write=_write,
    example=example("mistral", sliding_window=8, norm_eps=1e-5),
)
