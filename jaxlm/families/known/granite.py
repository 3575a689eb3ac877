"""Granite 3: Llama whose embeddings, scores, additions to the residual stream and logits are multiplied by numbers."""

from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, write_decoder
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata, biases, decoder_settings
from jaxlm.families.settings import Settings
from jaxrun.process.errors import UserError


def _read(settings: Settings) -> ModelConfig:
    bias = settings.flag("attention_bias", False)
    return read_decoder(
        settings,
        "granite",
        tokens=(1, 2, None),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=settings.flag("mlp_bias", False),
        embed_scale=settings.number("embedding_multiplier", 1.0),
        attention_scale=settings.number("attention_multiplier", 1.0),
        residual_scale=settings.number("residual_multiplier", 1.0),
        logit_scale=1.0 / settings.number("logits_scaling", 1.0),
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_decoder(config),
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "embedding_multiplier": config.embed_scale,
        "attention_multiplier": config.attention_scale,
        "residual_multiplier": config.residual_scale,
        "logits_scaling": 1.0 / config.logit_scale,
    }


def _read_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    if not metadata.get("rope.scaling.finetuned", True):
        raise UserError(f"{metadata.where}: rope.scaling.finetuned is False, expected layers that rotate")
    raw = decoder_settings(metadata) | biases(metadata)
    # 0 is what llama.cpp takes where there is no number: the usual scale, and no multiplication.
    usual = raw["head_dim"] ** -0.5 if "head_dim" in raw else None
    return raw | {
        "embedding_multiplier": metadata.get("embedding_scale") or 1.0,
        "attention_multiplier": metadata.get("attention.scale") or usual,
        "residual_multiplier": metadata.get("residual_scale") or 1.0,
        "logits_scaling": metadata.get("logit_scale"),
    }


GRANITE = Family(
    name="granite",
    model_type="granite",
    causal_lm="GraniteForCausalLM",
    read=_read,
    write=_write,
    example=example(
        "granite",
        embed_scale=12.0,
        attention_scale=0.25,
        residual_scale=0.25,
        logit_scale=0.125,
        norm_eps=1e-5,
        tie_embeddings=True,
    ),
    gguf=GGUFFormat("granite", _read_gguf, pairs=True),
)
