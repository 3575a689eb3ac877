"""Tickets as Hugging Face folders: under a name that plain transformers computes exactly, or with a modelling file."""

import math
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array
from transformers import PreTrainedTokenizerBase

from jaxlm.families.config import ModelConfig
from jaxlm.families.names import weights as weights_of
from jaxlm.families.registry import family_of
from jaxlm.files.hf import write_weights
from jaxlm.files.hf_config import to_hf
from jaxrun.process.errors import UserError

MODELING = "modeling_ticket.py"


def plain_container(config: ModelConfig) -> ModelConfig | None:
    """Returns the config under which plain transformers computes these weights exactly, or None if there is none.

    transformers 5 refuses Llama and Gemma 3 whose width is no multiple of the heads; Mistral is Llama without that
    check. GPT-2's heads always fill its width. llama.cpp and vLLM take the width over the heads for the width of a head
    of Qwen2's; with a bias of zeros at its output projection it is a Llama, of which they read it.

    Raises:
        UserError: A Qwen2 that they would misread and that is no Llama.
    """
    if any(config.ends):
        return None
    heads = family_of(config).heads
    if heads == "fill":
        return config if config.q_width == config.hidden_size else None
    whole = config.hidden_size % config.num_heads == 0
    if heads == "share" and config.q_width != config.hidden_size:
        if not whole or config.sliding_window is not None:
            raise UserError(
                f"a {config.family} with {config.num_heads} heads of {config.head_dim} in a width of "
                f"{config.hidden_size}: llama.cpp and vLLM misread its heads, and it is no Llama; expected a kappa "
                "that leaves heads whose number divides the width, of layers that do not slide"
            )
        return replace(config, family="llama", o_bias=True)
    return config if whole or heads in ("any", "share") else _as_mistral(config)


def save_ticket(
    folder: str | Path,
    config: ModelConfig,
    weights: Mapping[str, Array],
    *,
    dtype: DTypeLike,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: str | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> bool:
    """Writes a ticket.

    Args:
        folder: An empty one.
        config: The ticket's shapes, maybe with wide ends.
        weights: By path, any correction folded in.
        dtype: To write in.
        tokenizer: Written along.
        card: README.md.
        sampling: How it writes by default; see `jaxlm.files.hf.sampling_defaults`.

    Returns:
        Whether plain transformers loads it; otherwise it brings a modelling file and needs ``trust_remote_code``.

    Raises:
        UserError: Full disk, no permission, or heads that other programs would misread.
    """
    beside = {} if card is None else {"README.md": card}
    plain = plain_container(config)
    settings = None
    values = contained(plain or config, weights)
    if plain is None:
        base = _as_mistral(config) or config
        settings = _settings(base)
        beside[MODELING] = _modeling(base)
    kinds: dict[str, Any] = {"tokenizer": tokenizer, "settings": settings, "beside": beside, "sampling": sampling}
    write_weights(folder, plain or config, values, dtype=dtype, **kinds)
    return plain is not None


def contained(container: ModelConfig, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Returns the weights of a ticket as those of its container, in which a bias of its output projections is zero."""
    values = dict(weights)
    for weight in weights_of(container):
        if weight.path.endswith(".o_proj.bias") and weight.layers is not None and weight.path not in values:
            values[weight.path] = jnp.zeros((len(weight.layers), *weight.shape), jnp.float32)
    return values


def _as_mistral(config: ModelConfig) -> ModelConfig | None:
    """Returns a Llama under Mistral's name, which has no biases."""
    if config.family != "llama" or config.qkv_bias or config.o_bias or config.mlp_bias:
        return None
    return replace(config, family="mistral")


def _settings(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json of a ticket with a modelling file: the ends' shape as its own, that between as ``ticket``.

    Where nothing is wide, its own shape is one that transformers takes; no layer has it.
    """
    first, last = config.ends
    raw = to_hf(_as_wide(config))
    kind = raw["model_type"]
    name = MODELING.removesuffix(".py")
    return raw | {
        "model_type": f"ticket_{kind}",
        "architectures": ["TicketForCausalLM"],
        "auto_map": {"AutoConfig": f"{name}.TicketConfig", "AutoModelForCausalLM": f"{name}.TicketForCausalLM"},
        "ticket": {
            "first": first,
            "last": last,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
            "intermediate_size": config.intermediate_size,
        },
    }


def _as_wide(config: ModelConfig) -> ModelConfig:
    if config.others:
        return replace(config, **dict(config.others[0].changes), others=())
    if family_of(config).heads == "fill":
        heads = config.hidden_size // config.head_dim
        return replace(config, num_heads=heads, num_kv_heads=heads)
    return replace(config, num_heads=math.gcd(config.hidden_size, config.num_heads), num_kv_heads=1)


def _modeling(config: ModelConfig) -> str:
    """Returns a modelling file: the family's own template, or that of whatever is built as Llama is."""
    templates = resources.files("twistjax.tickets") / "modeling"
    family = family_of(config)
    own = templates / f"{family.name}.py.txt"
    text = (own if own.is_file() else templates / "decoder.py.txt").read_text(encoding="utf-8")
    name = family.causal_lm.removesuffix("ForCausalLM")
    words = {
        "CONFIG": family.config_class or f"{name}Config",
        "KIND": family.model_type,
        "MODULE": family.name,
        "FAMILY": name,
    }
    for word, meant in words.items():
        text = text.replace(word, meant)
    return text
