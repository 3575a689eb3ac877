"""Reads and writes the keys of config.json that say how positions rotate, with transformers' own defaults.

Source: transformers' ``modeling_rope_utils.py``.
"""

import math
from collections.abc import Mapping
from typing import Any

from jaxlm.families.config import ModelConfig
from jaxlm.families.rope import SCALINGS, RopeConfig
from jaxlm.families.settings import Settings

_ORIGINAL = "original_max_position_embeddings"
_SPELLINGS = {"su": "longrope"}
"""Former names of scalings."""


def read_rope(
    settings: Settings,
    raw: Mapping[str, Any],
    theta: float,
    *,
    max_position: int = 2048,
    rotates_part: bool = False,
) -> RopeConfig:
    """Reads the rotation; `check_rope` compares it with the model's heads afterwards.

    Args:
        settings: The config.json.
        raw: Its section of the rotation.
        theta: Where the section does not say it.
        max_position: Longest row where config.json does not say it.
        rotates_part: Whether heads of which a part rotates are computed.

    Raises:
        UserError: A scaling that is not computed, or that its numbers do not give.
    """
    given = Settings(raw, f"{settings.where}: rope scaling")
    key = "rope_type" if given.get("rope_type") is not None else "type"
    word = given.get(key, "default")
    scaling = _SPELLINGS.get(word, word) if isinstance(word, str) else word
    if scaling not in SCALINGS:
        raise given.fail(key, f"one of {', '.join(SCALINGS)}")
    partial = given.number("partial_rotary_factor", settings.number("partial_rotary_factor", 1.0))
    if partial != 1.0 and not ((rotates_part or scaling == "proportional") and partial < 1.0):
        raise given.fail("partial_rotary_factor", "1.0: other values are not implemented")
    most = settings.count("max_position_embeddings", max_position)
    original = settings.count(_ORIGINAL, given.count(_ORIGINAL, most))
    kinds: dict[str, Any] = {
        "theta": given.number("rope_theta", theta),
        "scaling": scaling,
        "partial": partial,
    }
    if scaling in ("llama3", "yarn", "longrope"):
        kinds["original_max_position"] = original
    if scaling == "proportional":
        kinds["factor"] = given.number("factor", 1.0)
    if scaling in ("linear", "dynamic", "llama3") or (scaling == "yarn" and not given.is_null("factor")):
        if given.get("factor") is None:
            raise given.fail("factor", "a number above 0")
        kinds["factor"] = given.number("factor", 1.0)
    if scaling == "dynamic":
        kinds["original_max_position"] = most
    elif scaling == "llama3":
        kinds |= {
            "low_freq_factor": given.number("low_freq_factor", 1.0),
            "high_freq_factor": given.number("high_freq_factor", 4.0),
        }
    elif scaling == "yarn":
        kinds |= _read_yarn(given, kinds, most)
    elif scaling == "longrope":
        kinds |= _read_longrope(given, most, original)
    return RopeConfig(**kinds)


def _read_yarn(given: Settings, kinds: Mapping[str, Any], most: int) -> dict[str, Any]:
    if kinds["theta"] <= 1.0:
        raise given.fail("rope_theta", "a number above 1")
    factor = kinds.get("factor", most / kinds["original_max_position"])
    wanted = yarn_attention(factor)
    if given.get("mscale") and given.get("mscale_all_dim"):
        one, all_dims = given.number("mscale", 1.0), given.number("mscale_all_dim", 1.0)
        wanted = yarn_attention(factor, one) / yarn_attention(factor, all_dims)
    return {
        "factor": factor,
        "attention_factor": given.number("attention_factor", wanted),
        "beta_fast": given.number("beta_fast", 32.0),
        "beta_slow": given.number("beta_slow", 1.0),
        "truncate": given.flag("truncate", True),
    }


def _read_longrope(given: Settings, most: int, original: int) -> dict[str, Any]:
    factor = given.number("factor", most / original)
    if factor > 1.0 and original == 1:
        raise given.fail(_ORIGINAL, "a whole number above 1")
    return {
        "attention_factor": given.number("attention_factor", longrope_attention(factor, original)),
        "short_factors": _factors(given, "short_factor"),
        "long_factors": _factors(given, "long_factor"),
    }


def yarn_attention(factor: float, scale: float = 1.0) -> float:
    """Returns the attention factor that follows from the stretching of a context, and a share of it."""
    return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0


def longrope_attention(factor: float, original: int) -> float:
    """Returns the attention factor that follows from the stretching of a context."""
    return 1.0 if factor <= 1.0 else math.sqrt(1.0 + math.log(factor) / math.log(original))


def _factors(given: Settings, key: str) -> tuple[float, ...]:
    values = given.get(key)
    if not isinstance(values, list) or not all(_is_divisor(one) for one in values):
        raise given.fail(key, "a list of numbers above 0")
    return tuple(map(float, values))


def _is_divisor(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e30


def check_rope(settings: Settings, config: ModelConfig) -> None:
    """Compares the rotation with the model's heads.

    Raises:
        UserError: Dimensions that do not rotate in pairs, or a list of frequencies that is not one for each pair.
    """
    for rope in (config.rope, config.rope_local):
        rotated = rope.rotated(config.head_dim) if rope is not None else 0
        if rope is None or rope.partial == 1.0:
            pass  # heads of an odd width are refused for every family
        elif rotated % 2 or not rotated:
            raise settings.fail("partial_rotary_factor", f"an even part of the {config.head_dim} dimensions of a head")
        if rope is not None and rope.scaling == "longrope":
            for key, factors in (("short_factor", rope.short_factors), ("long_factor", rope.long_factors)):
                if len(factors) != rotated // 2:
                    given = Settings({key: list(factors)}, f"{settings.where}: rope scaling")
                    raise given.fail(key, f"{rotated // 2} numbers, one for each pair of dimensions")


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Returns the keys that `read_rope` reads, as transformers 4 and 5 understand them."""
    rope = config.rope
    raw: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": write_scaling(rope, config.max_position) or None}
    if rope.scaling == "longrope":
        raw[_ORIGINAL] = rope.original_max_position  # where transformers 4 looks for it
    if rope.partial != 1.0:
        raw["partial_rotary_factor"] = rope.partial
    return raw


def write_scaling(rope: RopeConfig, max_position: int) -> dict[str, Any]:
    """Returns the section of a scaling; nothing where there is none.

    Args:
        rope: The rotation.
        max_position: Longest row of the model.
    """
    if rope.scaling == "default":
        return {}
    raw: dict[str, Any] = {"rope_type": rope.scaling}
    if rope.scaling != "longrope":
        raw["factor"] = rope.factor
    if rope.scaling == "proportional":
        raw["partial_rotary_factor"] = rope.partial
    if rope.scaling == "llama3":
        raw |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.scaling in ("llama3", "yarn", "longrope"):
        raw[_ORIGINAL] = rope.original_max_position
    if rope.scaling == "yarn":
        raw |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        raw |= _unless(rope.attention_factor, yarn_attention(rope.factor))
    elif rope.scaling == "longrope":
        raw |= {"short_factor": list(rope.short_factors), "long_factor": list(rope.long_factors)}
        original = rope.original_max_position
        raw |= _unless(rope.attention_factor, longrope_attention(max_position / original, original))
    return raw


def _unless(attention_factor: float, usual: float) -> dict[str, float]:
    return {} if attention_factor == usual else {"attention_factor": attention_factor}
