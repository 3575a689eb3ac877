"""The schemes by what config.json calls them."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxlm.quantised.checkpoints.bitsandbytes import Bitsandbytes
from jaxlm.quantised.checkpoints.four_bits import PACK_QUANTIZED, FourBits, four_bits_of
from jaxlm.quantised.checkpoints.fp8 import Fp8
from jaxlm.quantised.checkpoints.scheme import Scheme

SECTION = "quantization_config"


def scheme_of(raw: Mapping[str, Any]) -> Scheme | None:
    """Returns the scheme that a config.json names; None where it names none, or one that is not read."""
    said = raw.get(SECTION)
    if not isinstance(said, Mapping):
        return None
    make = SCHEMES.get(str(said.get("quant_method")))
    return None if make is None else make(said)


def _bitsandbytes(said: Mapping[str, Any]) -> Scheme | None:
    return Bitsandbytes() if said.get("load_in_4bit", said.get("_load_in_4bit")) is True else None


def _fp8(said: Mapping[str, Any]) -> Scheme | None:
    block = _block(said.get("weight_block_size"))
    return Fp8("_scale_inv", block) if block is not None and said.get("fmt", "e4m3") == "e4m3" else None


def _compressed_tensors(said: Mapping[str, Any]) -> Scheme | None:
    """One way for all matrices: several groups of them may be kept differently. Of rotated ones, inputs are too."""
    groups = said.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1 or said.get("transform_config"):
        return None
    (group,) = groups.values()
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    kind = (said.get("format"), weights.get("type"), weights.get("num_bits"))
    strategy = weights.get("strategy")
    if kind == ("float-quantized", "float", 8) and strategy in ("tensor", "channel"):
        return Fp8("_scale", None)
    if kind == ("float-quantized", "float", 8) and (block := _block(weights.get("block_structure"))) is not None:
        return Fp8("_scale", block)
    if kind == ("pack-quantized", "int", 4) and strategy in ("group", "channel"):
        return FourBits(PACK_QUANTIZED)
    return None


def _block(given: Any) -> tuple[int, int] | None:
    fits = isinstance(given, list) and len(given) == 2 and all(type(one) is int and one > 0 for one in given)
    return (given[0], given[1]) if fits else None


SCHEMES: dict[str, Callable[[Mapping[str, Any]], Scheme | None]] = {
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "gptq": four_bits_of,
    "awq": four_bits_of,
}
"""What ``quant_method`` says -> the scheme of the section, None for settings of it that are not read."""
