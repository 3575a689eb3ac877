"""Hugging Face's config.json to `ModelConfig` and back, refusing every setting the decoder does not compute."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxlm.families.config import ModelConfig, wide_ends
from jaxlm.families.family import Family
from jaxlm.families.registry import by_model_type, by_whole, family_of
from jaxlm.families.settings import Settings, is_whole, short
from jaxlm.files.unread_keys import SHARED_KEYS, TOWER_KEYS, check_unread, refuse_uncomputed, text_defaults
from jaxrun.process.errors import UserError
from jaxrun.process.notices import tell_once

TICKET = "ticket_"
"""Begins the model type of a pruned model with a modelling file."""


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
    if isinstance(kind, str) and kind in (wholes := by_whole()):
        return _from_whole(raw, wholes[kind], where)
    family = _family(kind, where)
    settings = Settings(raw, where, family.keys)
    refuse_uncomputed(family, settings)
    config = family.read(settings)
    check_unread(family, settings)
    heads, hidden = config.num_heads, config.hidden_size
    if heads % config.num_kv_heads:
        raise settings.fail("num_key_value_heads", f"a divisor of the {heads} attention heads")
    odd = config.positions == "rope" and config.head_dim % 2
    if odd or (family.heads == "fill" and config.q_width != hidden):
        raise settings.fail("num_attention_heads", f"heads of an even width within hidden_size {hidden}")
    return _within_vocabulary(config, settings)


def with_ends(config: ModelConfig, ends: Any, where: str) -> ModelConfig:
    """Returns a config whose texts end by other tokens.

    Args:
        config: Of the model.
        ends: A token id or a list of them, as a file has them.
        where: What to call that file in messages.

    Raises:
        UserError: They are no token ids, or none of the model's.
    """
    settings = Settings({"eos_token_id": ends}, where)
    return _within_vocabulary(replace(config, eos_ids=settings.tokens("eos_token_id", None)), settings)


def _family(kind: Any, where: str) -> Family:
    families = by_model_type()
    if isinstance(kind, str) and kind in families:
        return families[kind]
    said = f"{where}: model_type is {short(kind)}"
    for family in families.values():
        if isinstance(kind, str) and kind in family.relatives:
            raise UserError(f"{said}, {family.relatives[kind]}")
    known = ", ".join([*families, *by_whole()])
    raise UserError(f"{said}, expected one of {known}; no other architecture is computed as one of these")


def _from_whole(raw: Mapping[str, Any], families: tuple[Family, ...], where: str) -> ModelConfig:
    """Reads the text half of a multimodal model: the section of its own, or the keys among which the tower's stand.

    Raises:
        UserError: The half is none of the families, of which the first is taken where nothing says it.
    """
    kind = raw["model_type"]
    halves = {one.wholes[kind]: one for one in families}
    apart = raw.get("text_config") is not None
    text = Settings(raw, where).section("text_config") if apart else raw
    half = text.get("model_type") if apart else None
    if half not in (None, *halves):
        expected = " or ".join(map(repr, halves))
        raise UserError(f"{where}: text_config.model_type is {short(half)}, expected {expected}")
    family = families[0] if half is None else halves[half]
    found = text_defaults(family.wholes[kind], family.model_type)
    found |= {key: value for key, value in text.items() if key not in TOWER_KEYS}
    for key in SHARED_KEYS:
        if found.get(key) is None:
            found[key] = raw.get(key)
    ties = [one["tie_word_embeddings"] for one in (raw, text) if one.get("tie_word_embeddings") is not None]
    if ties:
        found["tie_word_embeddings"] = next((tie for tie in ties if tie is not False), False)
    for key in {"rope_scaling", "rope_parameters"} & found.keys():
        found[key] = _plain_positions(Settings(found, where).section(key))
    config = from_hf({**found, "model_type": family.model_type}, where)
    tell_once(
        f"{where}: of {kind} the language model alone is read, without images; adapters are for the whole, merged "
        f"models are {family.causal_lm}"
    )
    return replace(config, whole=kind)


def _plain_positions(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a rotation without the sections for images: of text, all of them are at the same position."""
    kept = {key: value for key, value in rope.items() if key not in ("mrope_section", "mrope_interleaved")}
    return {key: "default" if key in ("type", "rope_type") and kept[key] == "mrope" else kept[key] for key in kept}


def _within_vocabulary(config: ModelConfig, settings: Settings) -> ModelConfig:
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
    ticket = raw.get("ticket")
    config = from_hf({**raw, "model_type": kind, "ticket": None}, where)
    if not isinstance(ticket, Mapping):
        raise UserError(f"{where}: ticket is {short(ticket)}, expected a section of keys")
    settings = Settings(ticket, f"{where}: ticket")
    first, last = (ticket.get(key, 0) for key in ("first", "last"))
    if not all(is_whole(count) and count >= 0 for count in (first, last)) or first + last >= config.num_layers:
        raise UserError(
            f"{where}: ticket has {short(first)} + {short(last)} ends, "
            f"expected fewer than the {config.num_layers} layers"
        )
    names = {
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "intermediate_size": "intermediate_size",
    }
    wide = wide_ends(config, first, last, **{name: getattr(config, name) for name in names})
    narrow: dict[str, Any] = {name: settings.count(key) for name, key in names.items()}
    return replace(wide, **narrow)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json that transformers 4 and 5 and their readers understand."""
    family = family_of(config)
    raw: dict[str, Any] = {
        "architectures": [family.causal_lm],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_ids[0] if len(config.eos_ids) == 1 else list(config.eos_ids) or None,
        "pad_token_id": config.pad_id,
    }
    return raw | family.write(config)
