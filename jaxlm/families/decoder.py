"""Reads and writes the keys of config.json that families of Llama's kind share."""

from collections.abc import Mapping
from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.rope_settings import check_rope, read_rope, write_rope
from jaxlm.families.settings import Settings

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_FULL, _SLIDING = "full_attention", "sliding_attention"

Tokens = tuple[int | None, int | None, int | None]
"""Beginning, end and padding token where config.json is silent."""


def read_decoder(
    settings: Settings,
    family: str,
    *,
    tokens: Tokens = (None, None, None),
    kv_heads: int | None = None,
    head_dim: int | None = None,
    max_position: int = 2048,
    theta: float = 10_000.0,
    eps: float = 1e-6,
    activation: tuple[str, str] | None = ("hidden_act", "silu"),
    tied: bool = False,
    rope: Mapping[str, Any] | None = None,
    rotates_part: bool = False,
    **switches: Any,
) -> ModelConfig:
    """Reads the keys that Llama's kind shares; missing ones get transformers' defaults.

    Args:
        settings: The config.json.
        family: The family's name.
        tokens: Those that are taken for left out.
        kv_heads: Likewise; None is the number of heads.
        head_dim: Likewise; None is the width over the heads.
        max_position: Likewise.
        theta: Likewise, of the rotation.
        eps: Likewise, of the norms.
        activation: The key of the activation, and its default; None is SiLU, whatever a file says.
        tied: Whether the head is the table where that is left out.
        rope: The section of the rotation; None is what both spellings say at the top.
        rotates_part: Whether the family computes heads of which a part rotates.
        **switches: Other fields of `ModelConfig`.
    """
    hidden, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    bos, eos, pad = tokens
    if rope is None:
        rope = {**settings.section("rope_scaling"), **settings.section("rope_parameters")}
    config = ModelConfig(
        family=family,
        vocab_size=settings.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=settings.count("intermediate_size"),
        num_layers=settings.count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=settings.count("num_key_value_heads", kv_heads or heads),
        head_dim=settings.count("head_dim", head_dim or max(1, hidden // heads)),
        max_position=settings.count("max_position_embeddings", max_position),
        norm_eps=settings.number("rms_norm_eps", eps),
        activation="silu"
        if activation is None
        else ACTIVATIONS[settings.word(activation[0], ACTIVATIONS, activation[1])],
        rope=read_rope(
            settings, rope, settings.number("rope_theta", theta), max_position=max_position, rotates_part=rotates_part
        ),
        tie_embeddings=settings.flag("tie_word_embeddings", tied),
        bos_id=settings.token("bos_token_id", bos),
        eos_ids=settings.tokens("eos_token_id", eos),
        pad_id=settings.token("pad_token_id", pad),
        **switches,
    )
    check_rope(settings, config)
    return config


def write_decoder(config: ModelConfig, activation: str = "hidden_act") -> dict[str, Any]:
    """Returns the keys that `read_decoder` reads; `activation` is the key of the activation."""
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm_eps,
        **write_rope(config),
        activation: "silu" if config.activation == "silu" else "gelu_pytorch_tanh",
    }


def read_softcap(settings: Settings, key: str, default: float | None) -> float | None:
    """Reads the bound of scores or logits; an explicit null is none."""
    if settings.is_null(key) or (default is None and settings.get(key) is None):
        return None
    return settings.number(key, default or 0.0)


def read_window(settings: Settings, default: int = 4096) -> int | None:
    """Reads the window of sliding layers in tokens; an explicit null is none."""
    return None if settings.is_null("sliding_window") else settings.count("sliding_window", default)


def read_layer_types(settings: Settings) -> tuple[bool, ...] | None:
    """Reads which layers slide; None where ``layer_types`` is left out.

    Raises:
        UserError: Other than a known type for every layer.
    """
    types, layers = settings.get("layer_types"), settings.count("num_hidden_layers")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != layers or any(item not in (_FULL, _SLIDING) for item in types):
        raise settings.fail("layer_types", f"{layers} entries, each one of {_FULL}, {_SLIDING}")
    return tuple(item == _SLIDING for item in types)


def write_layer_types(config: ModelConfig) -> dict[str, Any]:
    """Returns the keys that `read_layer_types` reads."""
    if config.sliding_pattern is None:
        return {}
    return {"layer_types": [_SLIDING if slides else _FULL for slides in config.sliding_pattern]}
