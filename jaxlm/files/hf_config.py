"""Hugging Face's config.json to `ModelConfig` and back, refusing every setting the decoder does not compute."""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from jaxlm.families.config import ModelConfig, WideEnds
from jaxlm.families.rope import SCALINGS, RopeConfig
from jaxrun.process.errors import UserError, nearest

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
TICKET = "ticket_"
"""What the model type of a pruned model with a modelling file begins with."""
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
}
# Beginning, end and padding token where config.json is silent.
_TOKENS = {"llama": (1, 2, None), "mistral": (1, 2, None), "gemma3_text": (2, 1, 0), "gpt2": (50256, 50256, None)}
# Settings that change the result and that the decoder computes for one value only.
_ONLY = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "transformers_weights": None,
}


_LARGEST = 2**31 - 1
_MOST = {"num_hidden_layers": 4096}
"""Most that a count may be: what is larger is no model, and would be counted out before a weight is looked for."""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


class _Settings:
    """Reads config.json with one-line errors that name the file and the key."""

    def __init__(self, raw: Mapping[str, Any], where: str):
        self.raw, self.where = raw, where
        self.names: Mapping[str, str] = _GPT2_NAMES if raw.get("model_type") == "gpt2" else {}

    def fail(self, key: str, expected: str) -> UserError:
        name = self.names.get(key, key)
        return UserError(f"{self.where}: {name} is {_short(self.raw.get(name))}, expected {expected}")

    def get(self, key: str, default: Any = None) -> Any:
        value = self.raw.get(self.names.get(key, key))
        return default if value is None else value

    def count(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if not _is_whole(value) or value < 1:
            raise self.fail(key, "a whole number above 0")
        if value > (most := _MOST.get(key, _LARGEST)):
            raise self.fail(key, f"at most {most:,}")
        return int(value)

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.fail(key, "a finite number above 0")
        return float(min(value, sys.float_info.max))

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def token(self, key: str, default: int | None) -> int | None:
        value = self.raw.get(key, default)
        if value is None or _is_whole(value):
            return value
        raise self.fail(key, "a token id")

    def tokens(self, key: str, default: int | None) -> tuple[int, ...]:
        value = self.raw.get(key, default)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(_is_whole(item) for item in values):
            raise self.fail(key, "a token id or a list of them")
        return tuple(values)

    def word(self, key: str, known: Iterable[str], default: str) -> str:
        value = self.get(key, default)
        words = list(known)
        if not isinstance(value, str) or value not in words:
            raise self.fail(key, f"one of {', '.join(words)}{nearest(str(value), words)}")
        return value

    def section(self, key: str) -> Mapping[str, Any]:
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self.fail(key, "a section of keys")
        return value


def from_hf(raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Reads a Hugging Face config, in the spelling of transformers 4 or 5.

    Args:
        raw: The parsed config.json.
        where: What to call it in messages.

    Raises:
        UserError: A model type or setting that the decoder does not compute, or a value of the wrong kind.
    """
    kind = raw.get("model_type")
    if isinstance(kind, str) and kind.startswith(TICKET):
        return _from_ticket(raw, kind.removeprefix(TICKET), where)
    settings = _Settings(raw, where)
    if kind == "gemma3":
        raise UserError(
            f"{where}: model_type is 'gemma3', which also holds a vision tower; expected a text-only 'gemma3_text'"
        )
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise UserError(
            f"{where}: model_type is {_short(kind)}, expected one of {supported}{nearest(str(kind), ARCHITECTURES)}"
        )
    for key, only in _ONLY.items():
        if settings.get(key, only) != only:
            raise settings.fail(key, f"{only!r}: other values are not implemented")
    hidden, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    default_activation = {"gpt2": "gelu_new", "gemma3_text": "gelu_pytorch_tanh"}.get(kind, "silu")
    activation_key = "hidden_activation" if kind == "gemma3_text" else "hidden_act"
    activation = settings.word(activation_key, _ACTIVATIONS, default_activation)
    layers = settings.count("num_hidden_layers")
    kv_default = {"mistral": 8, "gemma3_text": 4}.get(kind, heads)
    head_default = {"qwen3": 128, "gemma3_text": 256}.get(kind, max(1, hidden // heads))
    window, pattern = _sliding(settings, kind, layers)
    rope, rope_local = _rope(settings, kind)
    bias = settings.flag("attention_bias", False) if kind in ("llama", "qwen3", "gemma3_text") else False
    bos, eos, pad = _TOKENS.get(kind, (None, None, None))
    gemma, gpt2 = kind == "gemma3_text", kind == "gpt2"
    config = ModelConfig(
        family="gemma3" if gemma else kind,
        vocab_size=settings.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=settings.count("intermediate_size", 4 * hidden if gpt2 else None),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads if gpt2 else settings.count("num_key_value_heads", kv_default),
        head_dim=hidden // heads if gpt2 else settings.count("head_dim", head_default),
        max_position=settings.count("max_position_embeddings", 1024 if gpt2 else 2048),
        norm="layer" if gpt2 else "rms",
        norm_eps=settings.number("layer_norm_epsilon", 1e-5) if gpt2 else settings.number("rms_norm_eps", 1e-6),
        norm_offset=1.0 if gemma else 0.0,
        activation=_ACTIVATIONS[activation],
        gated_mlp=not gpt2,
        qkv_bias=bias or gpt2 or kind == "qwen2",
        o_bias=bias or gpt2,
        mlp_bias=gpt2 or (kind == "llama" and settings.flag("mlp_bias", False)),
        fused_qkv=gpt2,
        positions="learned" if gpt2 else "rope",
        rope=rope,
        rope_local=rope_local,
        qk_norm=kind in ("qwen3", "gemma3_text"),
        post_norms=gemma,
        sliding_window=window,
        sliding_pattern=pattern,
        embed_scale=hidden**0.5 if gemma else 1.0,
        attention_scale=settings.number("query_pre_attn_scalar", 256) ** -0.5 if gemma else None,
        tie_embeddings=settings.flag("tie_word_embeddings", gemma or gpt2),
        bos_id=settings.token("bos_token_id", bos),
        eos_ids=settings.tokens("eos_token_id", eos),
        pad_id=settings.token("pad_token_id", pad),
    )
    if heads % config.num_kv_heads:
        raise settings.fail("num_key_value_heads", f"a divisor of the {heads} attention heads")
    if (gpt2 and hidden % heads) or (not gpt2 and config.head_dim % 2):
        raise settings.fail("num_attention_heads", f"heads of an even width within hidden_size {hidden}")
    return _within_vocabulary(config, settings)


def _within_vocabulary(config: ModelConfig, settings: _Settings) -> ModelConfig:
    """Refuses beginnings and ends that no text can have; drops those of the family, and padding, that it cannot."""
    known = range(config.vocab_size)
    for key, tokens in (("bos_token_id", (config.bos_id,)), ("eos_token_id", config.eos_ids)):
        if settings.raw.get(key) is not None and not all(token in known for token in tokens):
            raise settings.fail(key, f"tokens of the {config.vocab_size:,}")
    return replace(
        config,
        bos_id=config.bos_id if config.bos_id in known else None,
        eos_ids=tuple(token for token in config.eos_ids if token in known),
        pad_id=config.pad_id if config.pad_id in known else None,
    )


def _from_ticket(raw: Mapping[str, Any], kind: str, where: str) -> ModelConfig:
    """Reads a pruned model whose layers between its ends have a shape of their own, under the key ``ticket``."""
    config = from_hf({**raw, "model_type": kind}, where)
    ticket = raw.get("ticket")
    if not isinstance(ticket, Mapping):
        raise UserError(f"{where}: ticket is {_short(ticket)}, expected a section of keys")
    settings = _Settings(ticket, f"{where}: ticket")
    first, last = (ticket.get(key, 0) for key in ("first", "last"))
    if not all(_is_whole(count) and count >= 0 for count in (first, last)) or first + last >= config.num_layers:
        raise UserError(
            f"{where}: ticket has {_short(first)} + {_short(last)} ends, "
            f"expected fewer than the {config.num_layers} layers"
        )
    ends = WideEnds(first, last, config.num_heads, config.num_kv_heads, config.intermediate_size)
    return replace(
        config,
        num_heads=settings.count("num_attention_heads"),
        num_kv_heads=settings.count("num_key_value_heads"),
        intermediate_size=settings.count("intermediate_size"),
        ends=ends if first or last else None,
    )


def _sliding(settings: _Settings, kind: str, layers: int) -> tuple[int | None, tuple[bool, ...] | None]:
    """The window in tokens, and which layers it applies to where not to all."""
    if kind in ("llama", "gpt2"):
        return None, None
    off = "sliding_window" in settings.raw and settings.raw["sliding_window"] is None
    if kind == "mistral":
        return None if off else settings.count("sliding_window", 4096), None
    if kind != "gemma3_text" and (off or not settings.flag("use_sliding_window", False)):
        return None, None
    types = settings.get("layer_types")
    if types is None and kind == "gemma3_text":
        period = settings.count("sliding_window_pattern", 6)
        pattern = tuple((layer + 1) % period != 0 for layer in range(layers))
    elif types is None:
        first = settings.raw.get("max_window_layers", 28)
        if not _is_whole(first):
            raise settings.fail("max_window_layers", "a number of layers")
        pattern = tuple(layer >= first for layer in range(layers))
    else:
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or len(types) != layers or any(item not in known for item in types):
            raise settings.fail("layer_types", f"{layers} entries, each one of {', '.join(known)}")
        pattern = tuple(item == "sliding_attention" for item in types)
    return None if off else settings.count("sliding_window", 4096), pattern


def _rope(settings: _Settings, kind: str) -> tuple[RopeConfig, RopeConfig | None]:
    """Rotary positions of the full and, for Gemma, of the sliding layers."""
    if kind == "gpt2":
        return RopeConfig(), None
    new, old = settings.section("rope_parameters"), settings.section("rope_scaling")
    if kind != "gemma3_text":
        return _one_rope(settings, {**old, **new}, settings.number("rope_theta", 10_000.0)), None
    by_kind = _Settings(new, f"{settings.where}: rope_parameters")
    full = {**old, **by_kind.section("full_attention")}
    local = by_kind.section("sliding_attention")
    return (
        _one_rope(settings, full, settings.number("rope_theta", 1_000_000.0)),
        _one_rope(settings, local, settings.number("rope_local_base_freq", 10_000.0)),
    )


def _one_rope(settings: _Settings, raw: Mapping[str, Any], theta: float) -> RopeConfig:
    given = _Settings(raw, f"{settings.where}: rope scaling")
    scaling = raw.get("rope_type", raw.get("type", "default"))
    if scaling not in SCALINGS:
        raise given.fail("rope_type" if "rope_type" in raw else "type", f"one of {', '.join(SCALINGS)}")
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise given.fail("partial_rotary_factor", "1.0: other values are not implemented")
    theta = given.number("rope_theta", theta)
    if scaling == "default":
        return RopeConfig(theta)
    if "factor" not in raw:
        raise given.fail("factor", "a number above 0")
    if scaling == "linear":
        return RopeConfig(theta, "linear", given.number("factor", 1.0))
    return RopeConfig(
        theta,
        "llama3",
        given.number("factor", 1.0),
        given.number("low_freq_factor", 1.0),
        given.number("high_freq_factor", 4.0),
        given.count("original_max_position_embeddings", settings.count("max_position_embeddings", 2048)),
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json that transformers 4 and 5 and their readers understand."""
    kind = "gemma3_text" if config.family == "gemma3" else config.family
    raw: dict[str, Any] = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_ids[0] if len(config.eos_ids) == 1 else list(config.eos_ids) or None,
        "pad_token_id": config.pad_id,
    }
    if kind == "gpt2":
        return raw | {
            "n_embd": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_positions": config.max_position,
            "n_inner": config.intermediate_size,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
        }
    raw |= {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": _scaling_to_hf(config.rope),
    }
    activation = "silu" if config.activation == "silu" else "gelu_pytorch_tanh"
    raw["hidden_activation" if kind == "gemma3_text" else "hidden_act"] = activation
    if kind in ("llama", "qwen3", "gemma3_text"):
        raw["attention_bias"] = config.o_bias
    if kind == "llama":
        raw["mlp_bias"] = config.mlp_bias
    if kind in ("mistral", "gemma3_text") or config.sliding_window is not None:
        raw["sliding_window"] = config.sliding_window
    if config.sliding_pattern is not None:
        raw["layer_types"] = ["sliding_attention" if s else "full_attention" for s in config.sliding_pattern]
    if kind in ("qwen2", "qwen3"):
        raw["use_sliding_window"] = config.sliding_window is not None
    if kind == "gemma3_text":
        assert config.rope_local is not None and config.attention_scale is not None
        raw["rope_local_base_freq"] = config.rope_local.theta
        raw["query_pre_attn_scalar"] = round(config.attention_scale**-2)
    return raw


def _scaling_to_hf(rope: RopeConfig) -> dict[str, Any] | None:
    if rope.scaling == "default":
        return None
    raw: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        raw |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position,
        }
    return raw
