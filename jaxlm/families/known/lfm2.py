"""LFM2 of Liquid AI: most layers mix tokens by a gated short convolution, others by attention.

In transformers older names of keys, ``block_ff_dim`` and ``tie_embedding``, stand before today's; so they do here.
"""

from dataclasses import replace
from typing import Any

from jaxlm.families.config import ModelConfig, OtherLayers
from jaxlm.families.decoder import read_decoder, write_decoder
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata, decoder_settings
from jaxlm.families.rope import RopeConfig
from jaxlm.families.settings import Settings, is_whole

_FULL, _CONV = "full_attention", "conv"
_KEYS = {"rms_norm_eps": "norm_eps"}
_OLDER = {"intermediate_size": "block_ff_dim", "tie_word_embeddings": "tie_embedding"}
_MOST = 2**31


def _of_conv(layers: tuple[int, ...]) -> tuple[OtherLayers, ...]:
    changes = (("mixer", "conv"), ("num_heads", 0), ("num_kv_heads", 0), ("qk_norm", False))
    return (OtherLayers("conv_layers", layers, changes),) if layers else ()


def _conv_layers(settings: Settings) -> tuple[int, ...]:
    """Reads which layers are convolutions."""
    count, types = settings.count("num_hidden_layers"), settings.get("layer_types")
    if types is None:
        full = settings.get("full_attn_idxs", list(range(count)))
        if not isinstance(full, list) or not all(is_whole(layer) for layer in full):
            raise settings.fail("full_attn_idxs", "a list of layers")
        types = [_FULL if layer in full else _CONV for layer in range(count)]
    elif not isinstance(types, list) or len(types) != count or any(item not in (_FULL, _CONV) for item in types):
        raise settings.fail("layer_types", f"{count} entries, each one of {_FULL}, {_CONV}")
    if _FULL not in types:
        key = "full_attn_idxs" if settings.get("layer_types") is None else "layer_types"
        raise settings.fail(key, "a layer of full attention at least")
    return tuple(layer for layer, kind in enumerate(types) if kind == _CONV)


def _mlp_width(settings: Settings, width: int) -> int:
    """Returns the width of the MLP, which a file may give as that of one without a gate."""
    adjusts = settings.flag("block_auto_adjust_ff_dim", True)
    multiple, multiplier = settings.count("block_multiple_of", 256), settings.number("block_ffn_dim_multiplier", 1.0)
    if not adjusts:
        return width
    width = 2 * width // 3
    if settings.is_null("block_ffn_dim_multiplier"):
        return max(width, 1)
    wide = multiplier * width
    if not 1 <= wide < _MOST:
        raise settings.fail("block_ffn_dim_multiplier", "a factor that leaves the MLP a width")
    return -(-int(wide) // multiple) * multiple


def _read(settings: Settings) -> ModelConfig:
    older = {key: name for key, name in _OLDER.items() if settings.raw.get(name) is not None}
    settings.names = {**settings.names, **older}
    for key in ("block_dim", "conv_dim", "conv_dim_out"):
        if settings.get(key, settings.get("hidden_size")) != settings.get("hidden_size"):
            raise settings.fail(key, "hidden_size")
    taps = settings.count("conv_L_cache", 3)
    if taps < 2:  # and there would be nothing to keep of the tokens before
        raise settings.fail("conv_L_cache", "2 or more: a convolution of one tap reads no token before")
    config = read_decoder(
        settings,
        "lfm2",
        tokens=(1, 2, 0),
        kv_heads=8,
        max_position=128_000,
        theta=1_000_000.0,
        eps=1e-5,
        activation=None,
        tied=True,
        qk_norm=True,
        conv_taps=taps,
        conv_bias=settings.flag("conv_bias", False),
        others=_of_conv(_conv_layers(settings)),
    )
    return replace(config, intermediate_size=_mlp_width(settings, config.intermediate_size))


def _write(config: ModelConfig) -> dict[str, Any]:
    raw = write_decoder(config)
    del raw["hidden_act"]
    conv = {layer for one in config.others for layer in one.layers}
    return raw | {
        "norm_eps": raw.pop("rms_norm_eps"),
        "block_auto_adjust_ff_dim": False,
        # Other programs read these where transformers has no need of them.
        "block_ff_dim": config.intermediate_size,
        "block_dim": config.hidden_size,
        "conv_dim": config.hidden_size,
        "conv_L_cache": config.conv_taps,
        "conv_bias": config.conv_bias,
        "layer_types": [_CONV if layer in conv else _FULL for layer in range(config.num_layers)],
    }


def _read_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata)
    heads = raw.get("num_key_value_heads")
    if isinstance(heads, list) and all(is_whole(one) for one in heads):  # layers without attention have none
        raw["layer_types"] = [_FULL if one else _CONV for one in heads]
        raw["num_key_value_heads"] = max(heads, default=0)
    return raw | {
        "norm_eps": raw.pop("rms_norm_eps", None),
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": metadata.get("shortconv.l_cache"),
    }


LFM2 = Family(
    name="lfm2",
    model_type="lfm2",
    causal_lm="Lfm2ForCausalLM",
    read=_read,
    write=_write,
    example=example(
        "lfm2",
        num_layers=6,
        rope=RopeConfig(1_000_000.0),
        norm_eps=1e-5,
        qk_norm=True,
        conv_taps=3,
        others=_of_conv((0, 1, 3, 4)),
        tie_embeddings=True,
    ),
    keys=_KEYS,
    idle=frozenset({*_OLDER, "full_attn_idxs"}),  # where others say more
    relatives={
        "lfm2_moe": "a mixture of experts; expected 'lfm2'",
        "lfm2_vl": "which also holds a vision tower; expected a text-only 'lfm2'",
    },
    modules={
        "norm": "embedding_norm",
        "input_layernorm": "operator_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "self_attn.out_proj",
        "self_attn.q_norm": "self_attn.q_layernorm",
        "self_attn.k_norm": "self_attn.k_layernorm",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
    },
    gguf=GGUFFormat(
        "lfm2",
        _read_gguf,
        names={
            "norm": "token_embd_norm",
            **{f"layers.conv.{name}": f"blk.{{i}}.shortconv.{name}" for name in ("conv", "in_proj", "out_proj")},
        },
    ),
)
