"""Llama 2 and 3, SmolLM2, and whatever else calls itself Llama; Seed-OSS, which is Llama with biases of its own."""

from dataclasses import replace
from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, write_decoder
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata, biases, decoder_settings
from jaxlm.families.rope import RopeConfig
from jaxlm.families.settings import Settings

_OUT_BIAS = "blk.0.attn_output.bias"


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


def _read_seed_oss(settings: Settings) -> ModelConfig:
    return read_decoder(
        settings,
        "seed_oss",
        tokens=(0, 2, 1),
        kv_heads=None if settings.is_null("num_key_value_heads") else 8,
        head_dim=None if settings.is_null("head_dim") else 128,
        max_position=524_288,
        qkv_bias=settings.flag("attention_bias", True),
        o_bias=settings.flag("attention_out_bias", False),
        mlp_bias=settings.flag("mlp_bias", False),
    )


def _write_seed_oss(config: ModelConfig) -> dict[str, Any]:
    biased = {"attention_bias": config.qkv_bias, "attention_out_bias": config.o_bias, "mlp_bias": config.mlp_bias}
    return write_decoder(config) | biased


def _read_seed_oss_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    return decoder_settings(metadata) | biases(metadata) | {"attention_out_bias": _OUT_BIAS in metadata.tensors}


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
SEED_OSS = Family(
    name="seed_oss",
    model_type="seed_oss",
    causal_lm="SeedOssForCausalLM",
    read=_read_seed_oss,
    write=_write_seed_oss,
    example=example("seed_oss", qkv_bias=True, o_bias=True, mlp_bias=True),
    idle=frozenset({"residual_dropout"}),
    gguf=GGUFFormat(
        "seed_oss", _read_seed_oss_gguf, names={"layers.post_attention_layernorm": "blk.{i}.post_attention_norm"}
    ),
)
