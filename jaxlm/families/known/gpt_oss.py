"""gpt-oss: a mixture whose experts bound their gates, attention with sinks, every other layer slides."""

from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, read_layer_types, read_window, write_decoder, write_layer_types
from jaxlm.families.family import Family, example
from jaxlm.families.known.mixtures import read_experts
from jaxlm.families.rope import RopeConfig
from jaxlm.families.settings import Settings

_SWITCHES: dict[str, Any] = {"experts_bias": True, "fused_experts": True, "attention_sinks": True}
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""The rotation where config.json says none."""


def _read(settings: Settings) -> ModelConfig:
    stored = settings.section("quantization_config")
    if stored and stored.get("quant_method") != "mxfp4":
        raise settings.fail("quantization_config", "mxfp4, or none")
    pattern, bias = read_layer_types(settings), settings.flag("attention_bias", True)
    if pattern is None:
        pattern = tuple(layer % 2 == 0 for layer in range(settings.count("num_hidden_layers")))
    return read_decoder(
        settings,
        "gpt_oss",
        kv_heads=8,
        head_dim=64,
        max_position=131_072,
        theta=150_000.0,
        eps=1e-5,
        rope={**settings.section("rope_scaling"), **settings.section("rope_parameters")} or _YARN,
        qkv_bias=bias,
        o_bias=bias,
        sliding_window=read_window(settings),
        sliding_pattern=pattern,
        swiglu_limit=settings.number("swiglu_limit", 7.0),
        swiglu_alpha=settings.number("swiglu_alpha", 1.702),
        **read_experts(settings, 128, 4, normed=True),
        **_SWITCHES,
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_decoder(config),
        "attention_bias": config.o_bias,
        "sliding_window": config.sliding_window,
        **write_layer_types(config),
        "swiglu_limit": config.swiglu_limit,
        "swiglu_alpha": config.swiglu_alpha,
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.active_experts,
    }


GPT_OSS = Family(
    name="gpt_oss",
    model_type="gpt_oss",
    causal_lm="GptOssForCausalLM",
    read=_read,
    write=_write,
    example=example(
        "gpt_oss",
        intermediate_size=32,
        rope=RopeConfig(
            150_000.0, "yarn", 4.0, original_max_position=32, attention_factor=1.1386294361119891, truncate=False
        ),
        norm_eps=1e-5,
        qkv_bias=True,
        o_bias=True,
        sliding_window=8,
        sliding_pattern=(True, False, True),
        experts=4,
        active_experts=2,
        swiglu_limit=7.0,
        **_SWITCHES,
    ),
    computes=frozenset({"quantization_config"}),
    idle=frozenset({"router_aux_loss_coef"}),
)
