"""Matrices in e4m3: by blocks, as DeepSeek and Qwen3 release them, and as compressed-tensors has them.

Source: ``finegrained_fp8`` of transformers: ``NAME`` float8_e4m3fn [out, in], ``NAME_scale_inv`` float32, one for each
block of outputs and inputs. ``naive_quantized`` of compressed-tensors: ``NAME_scale``, one for all, for every output,
or for each block.
"""

import math
from collections.abc import Collection
from typing import Any

import jax
import ml_dtypes
import numpy as np

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
        rows, columns = map(len, self._scales_of(key, values, scale))
        turned: list[Any] = [jax.ShapeDtypeStruct(values.shape[::-1], values.dtype)]
        turned += [jax.ShapeDtypeStruct((columns, rows), scale.dtype)]
        return Fp8Weight(turned[0], turned[1], self._grouped((rows, columns)))

    def read(self, key: str, tensors: Tensors) -> Fp8Weight:
        """See `Scheme.read`."""
        values, scale = tensors.read(key), tensors.read(key + self.ending)
        rows, of_inputs = self._scales_of(key, values, scale)
        scale = scale.reshape(rows[-1] + 1, of_inputs[-1] + 1)[np.ix_(rows, of_inputs)]
        turned = columns(values, scale)
        return Fp8Weight(turned[0], turned[1], self._grouped(scale.shape))

    @staticmethod
    def _grouped(scales: tuple[int, ...]) -> tuple[bool, bool]:
        """Returns whether inputs and outputs have several scales, given the shape of all."""
        return scales[1] > 1, scales[0] > 1

    def _scales_of(self, key: str, values: Any, scale: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns which row of the scales each block of outputs has, and which column each of inputs."""
        if len(values.shape) != 2 or values.dtype != ml_dtypes.float8_e4m3fn or not all(values.shape):
            raise UserError(f"{key}: is {values.dtype.name} {list(values.shape)}, expected a matrix of float8_e4m3fn")
        outputs, inputs = values.shape
        block = self.block or (1 if scale.size > 1 else outputs, inputs)
        rows, columns = (_blocks(size, most) for size, most in zip((outputs, inputs), block, strict=True))
        sized(key, f"weight{self.ending}", scale, (rows[-1] + 1) * (columns[-1] + 1), SCALES)
        return rows, columns


def _blocks(size: int, most: int) -> np.ndarray:
    """Returns the scale of every block of a side, of smaller, equal blocks where the last one would be cut short."""
    most = min(size, most)
    return np.arange(0, size, math.gcd(size, most)) // most
