"""Groups of four bits as GPTQ, AWQ and compressed-tensors pack them into int32.

Source: ``qlinear`` of GPTQModel: ``qweight`` [in / 8, out], ``qzeros`` [groups, out / 8], the lowest bits first, zeros
less one. ``WQLinear_GEMM`` of AutoAWQ: ``qweight`` [in, out / 8], ``qzeros`` likewise, outputs in the order of `_AWQ`.
``pack_quantized`` of compressed-tensors: ``weight_packed`` [out, in / 8], ``weight_zero_point`` [out / 8, groups].
Each has a scale for a group of inputs of an output.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.quantised.bits import packed
from jaxlm.quantised.checkpoints.scheme import SCALES, Tensors
from jaxlm.quantised.int4 import Int4Weight
from jaxrun.process.errors import UserError

_EACH = 8
"""Numbers in an int32."""
_IN_ORDER = tuple(range(_EACH))
_AWQ = (0, 2, 4, 6, 1, 3, 5, 7)
_MIDDLE = 8
"""The number that stands for 0 where no zero point is stored."""


class _Layout(NamedTuple):
    """Where a tool keeps what.

    Attributes:
        kind: What the form is called.
        values: The packed numbers.
        scale: Their scales.
        zero: Their zero points, packed.
        others: What else belongs to a matrix.
        packs: The axis along which numbers are packed, and that of zero points.
        order: The places, among eight, of numbers from the lowest bits up.
        turned: Whether tensors are [out, in].
        less: What zero points are stored less by.
    """

    kind: str
    values: str
    scale: str
    zero: str
    others: tuple[str, ...]
    packs: tuple[int, int]
    order: tuple[int, ...] = _IN_ORDER
    turned: bool = False
    less: int = 0


GPTQ = _Layout("gptq", "qweight", "scales", "qzeros", ("g_idx",), (0, 1), less=1)
GPTQ_V2 = GPTQ._replace(less=0)
AWQ = _Layout("awq", "qweight", "scales", "qzeros", (), (1, 1), _AWQ)
PACK_QUANTIZED = _Layout(
    "pack-quantized",
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    ("weight_shape", "weight_g_idx"),
    (1, 0),
    turned=True,
)


class FourBits:
    """Weights of four bits in one of the layouts."""

    def __init__(self, layout: _Layout):
        self.layout = layout

    def parts(self, key: str, known: Collection[str]) -> list[str]:
        """See `Scheme.parts`."""
        of, layout = key.removesuffix("weight"), self.layout
        if of + layout.values not in known:
            return []
        may_be = [of + name for name in (layout.zero, *layout.others) if of + name in known]
        return [of + layout.values, of + layout.scale, *may_be]

    def form(self, key: str, tensors: Tensors) -> Int4Weight:
        """See `Scheme.form`."""
        values, scale = tensors.like(self._name(key, self.layout.values)), self._scale(key, tensors, tensors.like)
        inputs, outputs = self._shape(key, values.shape, scale)
        made: dict[str, Any] = {"values": jax.ShapeDtypeStruct((inputs // 2, outputs), np.uint8), "scale": scale}
        made["zero"] = jax.ShapeDtypeStruct(scale.shape, np.uint8)
        return Int4Weight(**made, kind=self.layout.kind, grouped=scale.shape[0] > 1)

    def read(self, key: str, tensors: Tensors) -> Int4Weight:
        """See `Scheme.read`."""
        layout, zeros = self.layout, self._name(key, self.layout.zero)
        held: dict[str, Any] = {"values": self._numbers(self._name(key, layout.values), tensors, layout.packs[0])}
        scale = self._scale(key, tensors, tensors.read)
        inputs, outputs = self._shape(key, tensors.like(self._name(key, layout.values)).shape, scale)
        zero = np.full(scale.shape, _MIDDLE, np.uint8)
        if zeros in tensors.known:
            zero = self._numbers(zeros, tensors, layout.packs[1])[: scale.shape[0], :outputs] + np.uint8(layout.less)
        if zero.shape != scale.shape:
            raise UserError(
                f"{key}: its zero points are {list(zero.shape)}, expected {list(scale.shape)} as its scales"
            )
        self._check_order(key, tensors, inputs, inputs // scale.shape[0])
        held |= {"values": packed(held["values"]), "scale": scale, "zero": zero}
        return Int4Weight(**held, kind=layout.kind, grouped=scale.shape[0] > 1)

    @staticmethod
    def _name(key: str, part: str) -> str:
        return key.removesuffix("weight") + part

    def _scale(self, key: str, tensors: Tensors, take: Callable[[str], Any]) -> Any:
        """Returns the scales [groups, out], or their shape and dtype."""
        scale = take(self._name(key, self.layout.scale))
        if not self.layout.turned or len(scale.shape) != 2:
            return scale
        if isinstance(scale, np.ndarray):
            return np.ascontiguousarray(scale.T)
        return jax.ShapeDtypeStruct(scale.shape[::-1], scale.dtype)

    def _shape(self, key: str, values: tuple[int, ...], scale: Any) -> tuple[int, int]:
        """Returns (in, out), once scales are known to fit."""
        if len(values) == 2:
            whole = [size * _EACH if axis == self.layout.packs[0] else size for axis, size in enumerate(values)]
            inputs, outputs = reversed(whole) if self.layout.turned else whole
            fits = len(scale.shape) == 2 and scale.dtype in SCALES and scale.shape[1] == outputs
            if fits and scale.shape[0] and inputs % scale.shape[0] == inputs % 2 == 0 < inputs:
                return inputs, outputs
        raise UserError(
            f"{key}: its scales are {scale.dtype.name} {list(scale.shape)} and its numbers {list(values)}, expected a "
            "scale for each group of inputs of every output"
        )

    def _numbers(self, name: str, tensors: Tensors, axis: int) -> np.ndarray:
        """Returns numbers [in, out] of a packed tensor."""
        held = tensors.read(name)
        if held.ndim != 2 or held.dtype != np.int32:
            raise UserError(f"{name}: is {held.dtype.name} {list(held.shape)}, expected a matrix of int32")
        bits = np.moveaxis(held.view(np.uint32), axis, -1)
        places = np.empty((*bits.shape, _EACH), np.uint8)
        for at, place in enumerate(self.layout.order):
            places[..., place] = (bits >> np.uint32(4 * at)) & np.uint32(15)
        numbers = np.moveaxis(places.reshape(bits.shape[0], -1), -1, axis)
        return np.ascontiguousarray(numbers.T if self.layout.turned else numbers)

    def _check_order(self, key: str, tensors: Tensors, inputs: int, group: int) -> None:
        """Refuses groups of inputs that do not follow each other, which activation order makes."""
        for part in self.layout.others:
            if part.endswith("g_idx") and (name := self._name(key, part)) in tensors.known:
                groups = tensors.read(name).ravel()
                if not np.array_equal(groups, np.arange(inputs) // group) and (groups != -1).any():
                    raise UserError(f"{key}: its {part} mixes groups, expected inputs in their order (desc_act: false)")


def four_bits_of(said: Mapping[str, Any]) -> FourBits | None:
    """Returns the scheme of a ``quantization_config`` of GPTQ or AWQ, None where it is not of four bits."""
    method, bits = said.get("quant_method"), said.get("bits")
    if bits != 4:
        return None
    if method == "awq":
        return FourBits(AWQ) if said.get("version", "gemm") == "gemm" else None
    return FourBits(GPTQ_V2 if said.get("checkpoint_format") == "gptq_v2" else GPTQ)
