"""Mixtures of experts: Qwen3-MoE, which is Qwen3 beside its experts, and Mixtral, which is Mistral."""

from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, read_window, write_decoder
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata, decoder_settings
from jaxlm.families.rope import RopeConfig
from jaxlm.families.settings import Settings, short

_WIDTH = {"intermediate_size": "moe_intermediate_size"}
_MOST_MLPS = 2**17
"""Experts of all layers together: more are no model, and would be looped over before weights are looked for."""
_GGUF_NAMES = {
    "layers.mlp.router": "blk.{i}.ffn_gate_inp",
    "layers.mlp.experts.gate_proj": "blk.{i}.ffn_gate_exps",
    "layers.mlp.experts.up_proj": "blk.{i}.ffn_up_exps",
    "layers.mlp.experts.down_proj": "blk.{i}.ffn_down_exps",
}


def read_experts(
    settings: Settings, default: int, active: int, *, normed: bool, key: str = "num_local_experts"
) -> dict[str, Any]:
    """Reads the experts of every layer.

    Args:
        settings: The config.json.
        default: Experts of a layer that are taken for left out.
        active: Experts of a token that are taken for left out.
        normed: Whether a token's weights add up to 1.
        key: Of the experts of a layer.

    Raises:
        UserError: Numbers of which no model is, or the router's own loss.
    """
    if settings.flag("output_router_logits", False):
        raise settings.fail("output_router_logits", "false: the router's own loss is not implemented")
    count, found = settings.count(key, default), settings.count("num_experts_per_tok", active)
    if count > (most := _MOST_MLPS // settings.count("num_hidden_layers")):
        raise settings.fail(key, f"at most {most:,} in so many layers")
    if found > count:
        said = "" if settings.get("num_experts_per_tok") is not None else f", and without a number it is {active}"
        raise settings.fail("num_experts_per_tok", f"at most the {count} experts{said}")
    return {"experts": count, "active_experts": found, "norm_experts": normed}


def _read_qwen3(settings: Settings) -> ModelConfig:
    if settings.get("mlp_only_layers", []) != []:
        raise settings.fail("mlp_only_layers", "none: layers without experts beside others are not implemented")
    if settings.count("decoder_sparse_step", 1) != 1:
        raise settings.fail("decoder_sparse_step", "1: layers without experts beside others are not implemented")
    bias, slides = settings.flag("attention_bias", False), settings.flag("use_sliding_window", False)
    key, other = "num_experts", settings.get("num_local_experts")
    if other is not None:
        if settings.get(key, other) != other:
            raise settings.fail(key, f"{short(other)}, as num_local_experts says")
        key = "num_local_experts"
    normed = settings.flag("norm_topk_prob", False)
    return read_decoder(
        settings,
        "qwen3_moe",
        kv_heads=4,
        max_position=32_768,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        sliding_window=read_window(settings) if slides else None,
        **read_experts(settings, 128, 8, normed=normed, key=key),
    )


def _write_qwen3(config: ModelConfig) -> dict[str, Any]:
    raw = write_decoder(config)
    width = {_WIDTH["intermediate_size"]: raw.pop("intermediate_size")}
    window = {} if config.sliding_window is None else {"sliding_window": config.sliding_window}
    return {
        **raw,
        **width,
        **window,
        "use_sliding_window": config.sliding_window is not None,
        "attention_bias": config.o_bias,
        "num_experts": config.experts,
        "num_experts_per_tok": config.active_experts,
        "norm_topk_prob": config.norm_experts,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _read_qwen3_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata)
    raw.pop("intermediate_size", None)
    return raw | {
        "moe_intermediate_size": metadata.get("expert_feed_forward_length"),
        "num_experts": metadata.get("expert_count"),
        "num_experts_per_tok": metadata.get("expert_used_count"),
        "norm_topk_prob": True,  # llama.cpp knows no other
    }


def _read_mixtral(settings: Settings) -> ModelConfig:
    if settings.get("router_jitter_noise", 0) != 0:
        raise settings.fail("router_jitter_noise", "0: noise in training is not implemented")
    windowed = settings.get("sliding_window") is not None
    return read_decoder(
        settings,
        "mixtral",
        tokens=(1, 2, None),
        kv_heads=8,
        max_position=131_072,
        theta=1_000_000.0,
        eps=1e-5,
        sliding_window=read_window(settings) if windowed else None,
        **read_experts(settings, 8, 2, normed=True),
    )


def _read_mixtral_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    return decoder_settings(metadata) | {
        "sliding_window": metadata.get("attention.sliding_window") or None,
        "num_local_experts": metadata.get("expert_count"),
        "num_experts_per_tok": metadata.get("expert_used_count"),
    }


def _write_mixtral(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_decoder(config),
        "sliding_window": config.sliding_window,
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.active_experts,
    }


QWEN3_MOE = Family(
    name="qwen3_moe",
    model_type="qwen3_moe",
    causal_lm="Qwen3MoeForCausalLM",
    read=_read_qwen3,
    write=_write_qwen3,
    example=example(
        "qwen3_moe",
        intermediate_size=32,
        qk_norm=True,
        head_dim=32,
        rope=RopeConfig(1_000_000.0),
        experts=6,
        active_experts=2,
    ),
    keys=_WIDTH,
    idle=frozenset({"intermediate_size", "router_aux_loss_coef", "sliding_window", "max_window_layers"}),
    modules={
        "mlp.router": "mlp.gate",
        **{f"mlp.experts.{name}": f"mlp.experts.{{e}}.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
    },
    gguf=GGUFFormat("qwen3moe", _read_qwen3_gguf, names=_GGUF_NAMES),
)
MIXTRAL = Family(
    name="mixtral",
    model_type="mixtral",
    causal_lm="MixtralForCausalLM",
    read=_read_mixtral,
    write=_write_mixtral,
    example=example("mixtral", rope=RopeConfig(1_000_000.0), norm_eps=1e-5, experts=4, active_experts=2),
    idle=frozenset({"router_aux_loss_coef"}),
    modules={
        "mlp.router": "block_sparse_moe.gate",
        "mlp.experts.gate_proj": "block_sparse_moe.experts.{e}.w1",
        "mlp.experts.up_proj": "block_sparse_moe.experts.{e}.w3",
        "mlp.experts.down_proj": "block_sparse_moe.experts.{e}.w2",
    },
    gguf=GGUFFormat("llama", _read_mixtral_gguf, names=_GGUF_NAMES, pairs=True),
)
