"""Matrices in e4m3: by blocks, as DeepSeek and Qwen3 release them, and as compressed-tensors has them.

Source: ``finegrained_fp8`` of transformers: ``NAME`` float8_e4m3fn [out, in], ``NAME_scale_inv`` float32, one for each
block of outputs and inputs. ``naive_quantized`` of compressed-tensors: ``NAME_scale``, one for all, for every output,
or for each block.
"""

from collections.abc import Collection
from typing import Any

import jax
import ml_dtypes

from jaxlm.quantised.checkpoints.scheme import SCALES, Tensors, columns, sized
from jaxlm.quantised.fp8 import Fp8Weight
from jaxrun.process.errors import UserError


class Fp8:
    """Weights of eight bits.

    Attributes:
        ending: What the scale's name has behind the weight's.
        block: Outputs and inputs of a block; None where a scale is of an output, or of all.
    """

    def __init__(self, ending: str, block: tuple[int, int] | None):
        self.ending, self.block = ending, block

    def parts(self, key: str, known: Collection[str]) -> list[str]:
        """See `Scheme.parts`."""
        scale = key + self.ending
        return [key, scale] if scale in known else []

    def form(self, key: str, tensors: Tensors) -> Fp8Weight:
        """See `Scheme.form`."""
        values, scale = tensors.like(key), tensors.like(key + self.ending)
        rows, columns = self._scales(key, values, scale)
        turned: list[Any] = [jax.ShapeDtypeStruct(values.shape[::-1], values.dtype)]
        turned += [jax.ShapeDtypeStruct((columns, rows), scale.dtype)]
        return Fp8Weight(turned[0], turned[1], self._block((rows, columns)))

    def read(self, key: str, tensors: Tensors) -> Fp8Weight:
        """See `Scheme.read`."""
        values, scale = tensors.read(key), tensors.read(key + self.ending)
        shape = self._scales(key, values, scale)
        turned = columns(values, scale.reshape(shape))
        return Fp8Weight(turned[0], turned[1], self._block(shape))

    def _block(self, scales: tuple[int, int]) -> tuple[int, int]:
        """Returns the inputs and outputs of a block, given the shape of the scales."""
        if self.block is not None:
            return self.block[1], self.block[0]
        return 0, int(scales[0] > 1)

    def _scales(self, key: str, values: Any, scale: Any) -> tuple[int, int]:
        """Returns the shape of the scales, [out, in]."""
        if len(values.shape) != 2 or values.dtype != ml_dtypes.float8_e4m3fn:
            raise UserError(f"{key}: is {values.dtype.name} {list(values.shape)}, expected a matrix of float8_e4m3fn")
        outputs, inputs = values.shape
        shape = (outputs if scale.size > 1 else 1, 1)
        if self.block is not None:
            shape = (-(-outputs // self.block[0]), -(-inputs // self.block[1]))
        sized(key, f"weight{self.ending}", scale, shape[0] * shape[1], SCALES)
        return shape
