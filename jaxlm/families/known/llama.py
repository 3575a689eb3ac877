"""Llama 2 and 3, SmolLM2, and whatever else calls itself Llama."""

from dataclasses import replace
from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, write_decoder
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata, biases, decoder_settings
from jaxlm.families.rope import RopeConfig
from jaxlm.families.settings import Settings


def _read(settings: Settings) -> ModelConfig:
    config = read_decoder(settings, "llama", tokens=(1, 2, None))
    bias = settings.flag("attention_bias", False)
    return replace(config, qkv_bias=bias, o_bias=bias, mlp_bias=settings.flag("mlp_bias", False))


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_decoder(config) | {"attention_bias": config.o_bias, "mlp_bias": config.mlp_bias}


def _read_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata) | biases(metadata)
    if window := metadata.get("attention.sliding_window"):
        raw |= {"model_type": "mistral", "sliding_window": window}
    return raw


LLAMA = Family(
    name="llama",
    model_type="llama",
    causal_lm="LlamaForCausalLM",
    read=_read,
    write=_write,
    example=example("llama", rope=RopeConfig(500_000.0, "llama3", factor=8.0, original_max_position=64), norm_eps=1e-5),
    heads="divide",
    gguf=GGUFFormat("llama", _read_gguf, pairs=True),
)
