"""Gemma 2, 3 and 4, text only: norms on both sides of each part, and layers that slide.

Of Gemma 2 every other layer slides, and scores and logits are bounded; of Gemma 3 most slide, at a rate of rotation of
their own; of Gemma 4 those that do not have wider heads, whose keys may be values, too.
"""

from dataclasses import replace
from typing import Any

from jaxlm.families.config import ModelConfig, OtherLayers
from jaxlm.families.decoder import (
    read_decoder,
    read_layer_types,
    read_softcap,
    read_window,
    write_decoder,
    write_layer_types,
)
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata, decoder_settings, layer_types
from jaxlm.families.rope import RopeConfig
from jaxlm.families.rope_settings import read_rope, write_scaling
from jaxlm.families.settings import Settings

_ACTIVATION = "hidden_activation"
_ATTENTION_CAP, _LOGIT_CAP = "attn_logit_softcapping", "final_logit_softcapping"
GGUF_NORMS = {
    "layers.post_attention_layernorm": "blk.{i}.post_attention_norm",
    "layers.pre_feedforward_layernorm": "blk.{i}.ffn_norm",
    "layers.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
}


def _query_scale(raw: dict[str, Any], metadata: GGUFMetadata, layers: int) -> int:
    """The 27B, which has so many layers, scales its queries by width over heads; the others by the head."""
    wide = metadata.get("block_count") == layers
    scale: int = raw["hidden_size"] // raw["num_attention_heads"] if wide else raw["head_dim"]
    return scale


_GEMMA2: dict[str, Any] = {"norm_offset": 1.0, "post_norms": True}


def _read_2(settings: Settings) -> ModelConfig:
    pattern = read_layer_types(settings)
    if pattern is None:
        pattern = tuple(layer % 2 == 0 for layer in range(settings.count("num_hidden_layers")))
    bias = settings.flag("attention_bias", False)
    return read_decoder(
        settings,
        "gemma2",
        tokens=(2, 1, 0),
        kv_heads=4,
        head_dim=256,
        activation=(_ACTIVATION, "gelu_pytorch_tanh"),
        tied=True,
        qkv_bias=bias,
        o_bias=bias,
        sliding_window=read_window(settings),
        sliding_pattern=pattern,
        embed_scale=settings.count("hidden_size") ** 0.5,
        attention_scale=settings.number("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=read_softcap(settings, _ATTENTION_CAP, 50.0),
        logit_softcap=read_softcap(settings, _LOGIT_CAP, 30.0),
        **_GEMMA2,
    )


def _write_2(config: ModelConfig) -> dict[str, Any]:
    assert config.attention_scale is not None
    return {
        **write_decoder(config, _ACTIVATION),
        "attention_bias": config.o_bias,
        "sliding_window": config.sliding_window,
        **write_layer_types(config),
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        _ATTENTION_CAP: config.attention_softcap,
        _LOGIT_CAP: config.logit_softcap,
    }


def _read_gguf_2(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata)
    if "head_dim" not in raw:
        return raw
    raw["query_pre_attn_scalar"] = _query_scale(raw, metadata, 46)
    raw |= {_ATTENTION_CAP: metadata.get(_ATTENTION_CAP, 50.0), _LOGIT_CAP: metadata.get(_LOGIT_CAP, 30.0)}
    return raw | {
        "sliding_window": metadata.get("attention.sliding_window", 4096),
        "layer_types": layer_types(metadata, 2),
    }


GEMMA2 = Family(
    name="gemma2",
    model_type="gemma2",
    causal_lm="Gemma2ForCausalLM",
    read=_read_2,
    write=_write_2,
    example=example(
        "gemma2",
        head_dim=32,
        num_kv_heads=1,
        activation="gelu_tanh",
        sliding_window=8,
        sliding_pattern=(True, False, True),
        embed_scale=8.0,
        attention_scale=24.0**-0.5,
        attention_softcap=2.0,
        logit_softcap=1.0,
        tie_embeddings=True,
        **_GEMMA2,
    ),
    computes=frozenset({_ATTENTION_CAP, _LOGIT_CAP}),
    idle=frozenset({"hidden_act"}),  # older files have it beside the key that counts
    heads="divide",
    gguf=GGUFFormat("gemma2", _read_gguf_2, names=GGUF_NORMS),
)


_GEMMA3: dict[str, Any] = {"norm_offset": 1.0, "qk_norm": True, "post_norms": True}


def _read_3(settings: Settings) -> ModelConfig:
    by_kind = Settings(settings.section("rope_parameters"), f"{settings.where}: rope_parameters")
    pattern = read_layer_types(settings)
    if pattern is None:
        period = settings.count("sliding_window_pattern", 6)
        pattern = tuple((layer + 1) % period != 0 for layer in range(settings.count("num_hidden_layers")))
    bias = settings.flag("attention_bias", False)
    return read_decoder(
        settings,
        "gemma3",
        tokens=(2, 1, 0),
        kv_heads=4,
        head_dim=256,
        theta=1_000_000.0,
        activation=(_ACTIVATION, "gelu_pytorch_tanh"),
        tied=True,
        rope={**settings.section("rope_scaling"), **by_kind.section("full_attention")},
        rope_local=read_rope(
            settings, by_kind.section("sliding_attention"), settings.number("rope_local_base_freq", 10_000.0)
        ),
        qkv_bias=bias,
        o_bias=bias,
        sliding_window=read_window(settings),
        sliding_pattern=pattern,
        embed_scale=settings.count("hidden_size") ** 0.5,
        attention_scale=settings.number("query_pre_attn_scalar", 256) ** -0.5,
        logit_softcap=read_softcap(settings, _LOGIT_CAP, None),
        **_GEMMA3,
    )


def _write_3(config: ModelConfig) -> dict[str, Any]:
    assert config.rope_local is not None and config.attention_scale is not None
    return {
        **write_decoder(config, _ACTIVATION),
        "attention_bias": config.o_bias,
        "sliding_window": config.sliding_window,
        **write_layer_types(config),
        "rope_local_base_freq": config.rope_local.theta,
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        _LOGIT_CAP: config.logit_softcap,
    }


def _read_gguf_3(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata, 1_000_000.0)
    if "head_dim" not in raw:
        return raw
    raw["query_pre_attn_scalar"] = _query_scale(raw, metadata, 62)
    raw["sliding_window"] = metadata.get("attention.sliding_window", 1024)
    raw["rope_local_base_freq"] = metadata.get("rope.freq_base_swa", 10_000.0)
    period = metadata.get("attention.sliding_window_pattern")
    if isinstance(period, list):
        raw["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in period]
    elif period is not None:
        raw["sliding_window_pattern"] = period
    return raw


GEMMA3 = Family(
    name="gemma3",
    model_type="gemma3_text",
    causal_lm="Gemma3ForCausalLM",
    read=_read_3,
    write=_write_3,
    example=example(
        "gemma3",
        head_dim=32,
        num_kv_heads=1,
        activation="gelu_tanh",
        rope=RopeConfig(1_000_000.0, "linear", factor=8.0),
        rope_local=RopeConfig(10_000.0),
        sliding_window=8,
        sliding_pattern=(True, True, False),
        embed_scale=8.0,
        attention_scale=24.0**-0.5,
        tie_embeddings=True,
        **_GEMMA3,
    ),
    computes=frozenset({_LOGIT_CAP}),
    idle=frozenset({"_sliding_window_pattern"}),
    wholes={"gemma3": "gemma3_text"},
    heads="divide",
    config_class="Gemma3TextConfig",
    gguf=GGUFFormat("gemma3", _read_gguf_3, names=GGUF_NORMS),
)


_GEMMA4: dict[str, Any] = {"qk_norm": True, "v_norm": True, "post_norms": True, "layer_scale": True}
_FULL_ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0}
_NOT_COMPUTED = {
    "hidden_size_per_layer_input": "0: embeddings of each layer, as of E2B and E4B, are not implemented",
    "num_kv_shared_layers": "0: layers that share keys and values, as of E2B and E4B, are not implemented",
    "enable_moe_block": "false: experts beside an MLP, as of 26B-A4B, are not implemented",
}
_FULL_LAYERS, _BY_LAYER = "full_layers", "per_layer_config"


def _read_4(settings: Settings) -> ModelConfig:
    for key, expected in _NOT_COMPUTED.items():
        if not settings.is_null(key) and settings.get(key, 256 if key == "hidden_size_per_layer_input" else 0):
            raise settings.fail(key, expected)
    if settings.get("use_bidirectional_attention") not in (None, "vision"):
        raise settings.fail("use_bidirectional_attention", "null, or 'vision', which leaves text causal")
    pattern = read_layer_types(settings)
    if pattern is None:
        count = settings.count("num_hidden_layers")
        pattern = tuple((layer + 1) % 6 != 0 and layer + 1 < count for layer in range(count))
    if pattern[-1]:
        raise settings.fail("layer_types", "full_attention as the last")
    if (window := read_window(settings, 512)) is None:
        raise settings.fail("sliding_window", "a whole number above 0")
    by_kind = Settings(settings.section("rope_parameters"), f"{settings.where}: rope_parameters")
    bias = settings.flag("attention_bias", False)
    config = read_decoder(
        settings,
        "gemma4",
        tokens=(2, 1, 0),
        kv_heads=4,
        head_dim=256,
        max_position=131_072,
        activation=(_ACTIVATION, "gelu_pytorch_tanh"),
        tied=True,
        rope=by_kind.section("sliding_attention"),
        qkv_bias=bias,
        o_bias=bias,
        sliding_window=window,
        sliding_pattern=pattern,
        embed_scale=settings.count("hidden_size") ** 0.5,
        attention_scale=1.0,
        logit_softcap=read_softcap(settings, _LOGIT_CAP, None),
        **_GEMMA4,
    )
    layers = tuple(layer for layer, slides in enumerate(pattern) if not slides)
    full = {
        **_full_heads(settings, layers, config),
        "keys_are_values": settings.flag("attention_k_eq_v", False),
        "rope": read_rope(settings, by_kind.section("full_attention") or _FULL_ROPE, 10_000.0, max_position=131_072),
    }
    if not any(pattern):
        return replace(config, **full)
    return replace(config, others=(OtherLayers(_FULL_LAYERS, layers, tuple(full.items())),))


def _full_heads(settings: Settings, layers: tuple[int, ...], config: ModelConfig) -> dict[str, Any]:
    """Reads the heads of layers that do not slide, in the words of the release or of transformers 5."""
    names = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
    by_layer = settings.get(_BY_LAYER)
    if by_layer is None:
        found, default = {name: settings.get(key) for name, key in names.items()}, 512
        if not settings.flag("attention_k_eq_v", False):
            found["num_key_value_heads"] = None
    else:
        found, default = _same_for_all(settings, by_layer, layers), config.head_dim
        names = dict.fromkeys(names, _BY_LAYER)
    own = Settings(found, settings.where, {})
    head_dim, kv_heads = own.count("head_dim", default), own.count("num_key_value_heads", config.num_kv_heads)
    if config.num_heads % kv_heads:
        raise settings.fail(names["num_key_value_heads"], f"a divisor of the {config.num_heads} attention heads")
    if head_dim % 2:
        raise settings.fail(names["head_dim"], "heads of an even width")
    return {"head_dim": head_dim, "num_kv_heads": kv_heads}


def _same_for_all(settings: Settings, by_layer: Any, layers: tuple[int, ...]) -> dict[str, Any]:
    """Returns the settings that every layer that does not slide has of its own."""
    own = by_layer if isinstance(by_layer, dict) else {}
    found = list(own.values())
    known = all(isinstance(one, dict) and one.keys() <= {"head_dim", "num_key_value_heads"} for one in found)
    if not known or any(one != found[0] for one in found) or set(own) != set(map(str, layers)):
        raise settings.fail(
            _BY_LAYER, "of each layer of full attention, and no other, the same head_dim and num_key_value_heads"
        )
    return dict(found[0])


def _write_4(config: ModelConfig) -> dict[str, Any]:
    assert config.sliding_pattern is not None
    full = next(stack.config for stack in config.stacks if config.num_layers - 1 in stack.layers)
    raw = write_decoder(config, _ACTIVATION)
    ropes = {"sliding_attention": config.rope, "full_attention": full.rope}
    return {
        **{key: value for key, value in raw.items() if key not in ("rope_theta", "rope_scaling")},
        "attention_bias": config.o_bias,
        "sliding_window": config.sliding_window,
        **write_layer_types(config),
        "global_head_dim": full.head_dim,
        "num_global_key_value_heads": full.num_kv_heads if full.keys_are_values else None,
        "attention_k_eq_v": full.keys_are_values,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": rope.theta, **write_scaling(rope, config.max_position)}
            for kind, rope in ropes.items()
        },
        "hidden_size_per_layer_input": 0,
        _LOGIT_CAP: config.logit_softcap,
    }


GEMMA4 = Family(
    name="gemma4",
    model_type="gemma4_text",
    causal_lm="Gemma4ForCausalLM",
    read=_read_4,
    write=_write_4,
    example=example(
        "gemma4",
        num_layers=4,
        activation="gelu_tanh",
        sliding_window=8,
        sliding_pattern=(True, False, True, False),
        embed_scale=8.0,
        attention_scale=1.0,
        logit_softcap=1.0,
        tie_embeddings=True,
        others=(
            OtherLayers(
                _FULL_LAYERS,
                (1, 3),
                (
                    ("head_dim", 32),
                    ("num_kv_heads", 1),
                    ("keys_are_values", True),
                    ("rope", RopeConfig(1_000_000.0, "proportional", partial=0.25)),
                ),
            ),
        ),
        **_GEMMA4,
    ),
    computes=frozenset({_LOGIT_CAP, _BY_LAYER, "use_bidirectional_attention"}),
    idle=frozenset(
        {
            *("vocab_size_per_layer_input", "use_double_wide_mlp", "global_head_dim", "num_global_key_value_heads"),
            *("num_experts", "top_k_experts", "moe_intermediate_size"),  # enable_moe_block says whether there are any
        }
    ),  # where others say more, or nothing
    wholes={"gemma4": "gemma4_text", "gemma4_unified": "gemma4_unified_text"},
    modules={"layer_scale": "layer_scalar"},
    config_class="Gemma4TextConfig",
)
