"""The schemes by what config.json calls them."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxlm.quantised.checkpoints.bitsandbytes import Bitsandbytes
from jaxlm.quantised.checkpoints.scheme import Scheme

SECTION = "quantization_config"


def _bitsandbytes(said: Mapping[str, Any]) -> Scheme | None:
    return Bitsandbytes() if said.get("load_in_4bit", said.get("_load_in_4bit")) is True else None


SCHEMES: dict[str, Callable[[Mapping[str, Any]], Scheme | None]] = {"bitsandbytes": _bitsandbytes}
"""What ``quant_method`` says -> the scheme of the section, None for settings of it that are not read."""


def scheme_of(raw: Mapping[str, Any]) -> Scheme | None:
    """Returns the scheme that a config.json names; None where it names none, or one that is not read."""
    said = raw.get(SECTION)
    if not isinstance(said, Mapping):
        return None
    make = SCHEMES.get(str(said.get("quant_method")))
    return None if make is None else make(said)
