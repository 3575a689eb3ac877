"""EXAONE 4: norms behind attention and MLP; where some layers slide, the others do not rotate."""

from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, read_layer_types, read_window, write_decoder, write_layer_types
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata, decoder_settings, layer_types
from jaxlm.families.rope import RopeConfig
from jaxlm.families.settings import Settings

_SWITCHES: dict[str, Any] = {"pre_norms": False, "post_norms": True, "qk_norm": True}
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


def _read(settings: Settings) -> ModelConfig:
    windows = _windows(settings)
    return read_decoder(settings, "exaone4", tokens=(0, 2, None), kv_heads=32, eps=1e-5, **_SWITCHES, **windows)


def _write(config: ModelConfig) -> dict[str, Any]:
    return {**write_decoder(config), "sliding_window": config.sliding_window, **write_layer_types(config)}


def _read_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata) | {"sliding_window": metadata.get("attention.sliding_window") or None}
    return raw if raw["sliding_window"] is None else raw | {"layer_types": layer_types(metadata, 4)}


EXAONE4 = Family(
    name="exaone4",
    model_type="exaone4",
    causal_lm="Exaone4ForCausalLM",
    read=_read,
    write=_write,
    example=example(
        "exaone4",
        rope=RopeConfig(1_000_000.0),
        sliding_window=8,
        sliding_pattern=(True, True, False),
        rope_pattern=(True, True, False),
        norm_eps=1e-5,
        **_SWITCHES,
    ),
    idle=frozenset({"sliding_window_pattern"}),  # where layer_types says more
    gguf=GGUFFormat("exaone4", _read_gguf, names=_GGUF_NAMES),
)
