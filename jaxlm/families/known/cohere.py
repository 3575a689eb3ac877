"""Cohere: attention and MLP read the same; of Cohere 2 (Command R7B), most layers slide, and others do not rotate."""

from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.decoder import read_decoder, read_layer_types, read_window, write_decoder, write_layer_types
from jaxlm.families.family import Family, example
from jaxlm.families.gguf import GGUFFormat, GGUFMetadata, decoder_settings, layer_types
from jaxlm.families.settings import Settings

_SWITCHES: dict[str, Any] = {"norm": "layer", "norm_bias": False, "parallel": True, "rope_interleaved": True}
_KEYS = {"rms_norm_eps": "layer_norm_eps"}


def _read(settings: Settings, family: str, **switches: Any) -> ModelConfig:
    if settings.flag("use_qk_norm", False):
        raise settings.fail("use_qk_norm", "false: norms of queries and keys of this family are not implemented")
    bias = settings.flag("attention_bias", False)
    return read_decoder(
        settings,
        family,
        tokens=(5, 255_001, 0),
        eps=1e-5,
        tied=True,
        qkv_bias=bias,
        o_bias=bias,
        logit_scale=settings.number("logit_scale", 0.0625),
        **_SWITCHES,
        **switches,
    )


def _read_cohere2(settings: Settings) -> ModelConfig:
    pattern = read_layer_types(settings)
    if pattern is None:
        period = settings.count("sliding_window_pattern", 4)
        pattern = tuple((layer + 1) % period != 0 for layer in range(settings.count("num_hidden_layers")))
    window = read_window(settings)
    if window is None:
        raise settings.fail("sliding_window", "a whole number above 0")
    return _read(settings, "cohere2", sliding_window=window, sliding_pattern=pattern, rope_pattern=pattern)


def _write(config: ModelConfig) -> dict[str, Any]:
    raw = write_decoder(config)
    eps = {_KEYS["rms_norm_eps"]: raw.pop("rms_norm_eps")}
    return raw | eps | {"attention_bias": config.o_bias, "logit_scale": config.logit_scale}


def _read_gguf(metadata: GGUFMetadata) -> dict[str, Any]:
    raw = decoder_settings(metadata)
    raw.pop("rms_norm_eps", None)
    return raw | {
        "layer_norm_eps": metadata.get("attention.layer_norm_epsilon"),
        "logit_scale": metadata.get("logit_scale"),
    }


def _read_gguf2(metadata: GGUFMetadata) -> dict[str, Any]:
    window = metadata.get("attention.sliding_window", 4096)
    return _read_gguf(metadata) | {"sliding_window": window, "layer_types": layer_types(metadata, 4)}


COHERE = Family(
    name="cohere",
    model_type="cohere",
    causal_lm="CohereForCausalLM",
    read=lambda settings: _read(settings, "cohere", theta=500_000.0),
    write=_write,
    example=example("cohere", logit_scale=0.0625, norm_eps=1e-5, tie_embeddings=True, **_SWITCHES),
    keys=_KEYS,
    gguf=GGUFFormat("command-r", _read_gguf),
)
COHERE2 = Family(
    name="cohere2",
    model_type="cohere2",
    causal_lm="Cohere2ForCausalLM",
    read=_read_cohere2,
    write=lambda config: {**_write(config), "sliding_window": config.sliding_window, **write_layer_types(config)},
    example=example(
        "cohere2",
        logit_scale=0.25,
        norm_eps=1e-5,
        sliding_window=8,
        sliding_pattern=(True, True, False),
        rope_pattern=(True, True, False),
        tie_embeddings=True,
        **_SWITCHES,
    ),
    keys=_KEYS,
    idle=frozenset({"sliding_window_pattern"}),  # where layer_types says more
    heads="fill",
    gguf=GGUFFormat("cohere2", _read_gguf2),
)
