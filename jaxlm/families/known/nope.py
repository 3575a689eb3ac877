"""Llama in which some layers do not rotate: every fourth of SmolLM3, and of EXAONE 4 those that do not slide."""

from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, read_layer_types, read_window, write_decoder, write_layer_types
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata, biases, decoder_settings, layer_types
from jaxlm.families.rope import RopeConfig
from jaxlm.families.settings import Settings


def _rotating(settings: Settings) -> tuple[bool, ...] | None:
    """Reads which layers rotate; None where all do."""
    layers, given = settings.count("num_hidden_layers"), settings.get("no_rope_layers")
    if given is None:
        period = settings.count("no_rope_layer_interval", 4)
        given = [int((layer + 1) % period != 0) for layer in range(layers)]
    if not isinstance(given, list) or len(given) < layers or any(item not in (0, 1) for item in given):
        raise settings.fail("no_rope_layers", f"{layers} entries, each 1 for a layer that rotates or 0")
    rotates = tuple(bool(item) for item in given[:layers])
    return None if all(rotates) else rotates


def _sliding(settings: Settings, rotates: tuple[bool, ...] | None) -> dict[str, Any]:
    """Reads the window, and the layers that it applies to: where nothing says it, those that do not rotate."""
    pattern = read_layer_types(settings)
    if not settings.flag("use_sliding_window", False) or settings.get("sliding_window") is None:
        if pattern is not None and any(pattern):
            raise settings.fail("layer_types", "full_attention alone without use_sliding_window and sliding_window")
        return {}
    if pattern is None:
        pattern = tuple(not one for one in rotates or (True,) * settings.count("num_hidden_layers"))
    return {"sliding_window": read_window(settings), "sliding_pattern": pattern}


def _read_smollm3(settings: Settings) -> ModelConfig:
    bias, rotates = settings.flag("attention_bias", False), _rotating(settings)
    return read_decoder(
        settings,
        "smollm3",
        tokens=(128_000, 128_001, 128_004),
        kv_heads=4,
        theta=2_000_000.0,
        tied=True,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=settings.flag("mlp_bias", False),
        rope_pattern=rotates,
        **_sliding(settings, rotates),
    )


def _write_smollm3(config: ModelConfig) -> dict[str, Any]:
    slides = config.sliding_window is not None
    return {
        **write_decoder(config),
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "no_rope_layers": [int(one) for one in config.rope_pattern or (True,) * config.num_layers],
        "use_sliding_window": slides,
        "sliding_window": config.sliding_window,
        **write_layer_types(config),
    }


def _read_smollm3_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    # llama.cpp knows no other interval than the one that was released.
    return decoder_settings(metadata) | biases(metadata) | {"no_rope_layer_interval": 4}


SMOLLM3 = Family(
    name="smollm3",
    model_type="smollm3",
    causal_lm="SmolLM3ForCausalLM",
    read=_read_smollm3,
    write=_write_smollm3,
    example=example(
        "smollm3",
        num_layers=4,
        rope=RopeConfig(2_000_000.0),
        rope_pattern=(True, True, True, False),
        tie_embeddings=True,
    ),
    idle=frozenset({"no_rope_layer_interval", "sliding_window", "max_window_layers"}),  # where others say more
    gguf=GGUFFormat("smollm3", _read_smollm3_gguf, pairs=True),
)


_EXAONE4: dict[str, Any] = {"pre_norms": False, "post_norms": True, "qk_norm": True}
_GGUF_NAMES = {
    "layers.post_attention_layernorm": "blk.{i}.post_attention_norm",
    "layers.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
}


def _windows(settings: Settings) -> dict[str, Any]:
    """Reads the window, and the layers that it applies to, which are those that rotate."""
    pattern, window = read_layer_types(settings), read_window(settings)
    if window is None:
        if pattern is not None and any(pattern):
            raise settings.fail("layer_types", "full_attention alone without sliding_window")
        return {}
    if pattern is None:
        period = settings.count("sliding_window_pattern", 4)
        pattern = tuple((layer + 1) % period != 0 for layer in range(settings.count("num_hidden_layers")))
    return {"sliding_window": window, "sliding_pattern": pattern, "rope_pattern": pattern}


def _read_exaone4(settings: Settings) -> ModelConfig:
    windows = _windows(settings)
    return read_decoder(settings, "exaone4", tokens=(0, 2, None), kv_heads=32, eps=1e-5, **_EXAONE4, **windows)


def _write_exaone4(config: ModelConfig) -> dict[str, Any]:
    return {**write_decoder(config), "sliding_window": config.sliding_window, **write_layer_types(config)}


def _read_exaone4_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata) | {"sliding_window": metadata.get("attention.sliding_window") or None}
    return raw if raw["sliding_window"] is None else raw | {"layer_types": layer_types(metadata, 4)}


EXAONE4 = Family(
    name="exaone4",
    model_type="exaone4",
    causal_lm="Exaone4ForCausalLM",
    read=_read_exaone4,
    write=_write_exaone4,
    example=example(
        "exaone4",
        rope=RopeConfig(1_000_000.0),
        sliding_window=8,
        sliding_pattern=(True, True, False),
        rope_pattern=(True, True, False),
        norm_eps=1e-5,
        **_EXAONE4,
    ),
    idle=frozenset({"sliding_window_pattern"}),  # where layer_types says more
    gguf=GGUFFormat("exaone4", _read_exaone4_gguf, names=_GGUF_NAMES),
)
