"""MXFP4, in which gpt-oss stores its experts: 4-bit floats, 32 of which share a power of two.

Source: OCP Microscaling Formats (MX) Specification 1.0, and the layout of openai/gpt-oss-20b: ``NAME_blocks`` uint8
[..., groups, 16], of each byte the lower half first, and ``NAME_scales`` uint8 [..., groups], biased by 127.
"""

import numpy as np

BLOCKS, SCALES = "_blocks", "_scales"
GROUP = 32
"""Numbers that share a scale."""
_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_POSITIVE, *(-value for value in _POSITIVE)], np.float32)
_BIAS = 127


def dequantised(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Returns the numbers, float32 [..., groups * 32].

    Args:
        blocks: uint8 [..., groups, 16].
        scales: uint8 [..., groups].
    """
    values = np.stack((_VALUES[blocks & 15], _VALUES[blocks >> 4]), axis=-1).reshape(*scales.shape, GROUP)
    with np.errstate(over="ignore"):  # of a damaged file, whose numbers are infinite
        scaled = np.ldexp(values, scales.astype(np.int32)[..., None] - _BIAS)
    return scaled.reshape(*scales.shape[:-1], -1)
