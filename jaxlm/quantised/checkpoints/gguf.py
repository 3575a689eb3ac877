"""GGUF's blocks in the forms that they are kept in, nothing of them lost.

Source: ``ggml-quants.c`` of llama.cpp, and ``gguf.quants``, whose numbers those of the forms are to the bit.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlm.devices.frozen_weight import FrozenWeight
from jaxlm.quantised.bits import packed
from jaxlm.quantised.checkpoints.scheme import columns
from jaxlm.quantised.grouped import GroupedWeight
from jaxlm.quantised.int8 import Int8Weight


def form_of(kind: str, inputs: int, outputs: int, row_bytes: int) -> FrozenWeight | None:
    """Returns the form of a tensor as shapes alone, [rows, columns]; None of a kind that is not kept.

    Args:
        kind: What GGUF calls it, such as ``Q4_K``.
        inputs: Of the matrix.
        outputs: Likewise.
        row_bytes: Of an output.
    """
    if kind not in KINDS:
        return None
    one = KINDS[kind](np.zeros((1, row_bytes), np.uint8))
    assert one.dense(np.float32).shape[-2] == inputs
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0], outputs), leaf.dtype), one)


def _q8_0(rows: np.ndarray) -> Int8Weight:
    blocks = _blocks(rows, 34)
    values = np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(len(rows), -1)
    values, scale = columns(values, _halves(blocks, 0))
    return Int8Weight(values, scale, "q8_0", grouped=True)


def _q4_0(rows: np.ndarray) -> GroupedWeight:
    blocks = _blocks(rows, 18)
    values = _nibbles(blocks[..., 2:], 16)
    return _grouped("q4_0", values, _halves(blocks, 0), zero=8)


def _q4_1(rows: np.ndarray) -> GroupedWeight:
    blocks = _blocks(rows, 20)
    values = _nibbles(blocks[..., 4:], 16)
    return _grouped("q4_1", values, _halves(blocks, 0), -_halves(blocks, 2))


def _q4_k(rows: np.ndarray) -> GroupedWeight:
    blocks = _blocks(rows, 144)
    scale, least = _six_bits(blocks[..., 4:16])
    factors: dict[str, Any] = {"factor": _halves(blocks, 0), "least_factor": _halves(blocks, 2)}
    return _grouped("q4_k", _nibbles(blocks[..., 16:], 32), scale, least, **factors)


def _q5_k(rows: np.ndarray) -> GroupedWeight:
    blocks = _blocks(rows, 176)
    scale, least = _six_bits(blocks[..., 4:16])
    factors: dict[str, Any] = {"factor": _halves(blocks, 0), "least_factor": _halves(blocks, 2)}
    upper = _planes(blocks[..., 16:48], 32, bits=1)
    return _grouped("q5_k", _nibbles(blocks[..., 48:], 32), scale, least, upper=upper, bits=1, **factors)


def _q6_k(rows: np.ndarray) -> GroupedWeight:
    blocks = _blocks(rows, 210)
    scale = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8).reshape(len(rows), -1)
    upper = _planes(blocks[..., 128:192], 32, bits=2)
    values = _nibbles(blocks[..., :128], 64)
    return _grouped("q6_k", values, scale, upper=upper, bits=2, factor=_halves(blocks, 208), zero=32)


KINDS: dict[str, Callable[[np.ndarray], FrozenWeight]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
"""What GGUF calls a kind -> the form, [rows, columns], of bytes [out, bytes]."""


def _blocks(rows: np.ndarray, size: int) -> np.ndarray:
    """Returns bytes [out, block, size]."""
    return rows.reshape(len(rows), -1, size)


def _halves(blocks: np.ndarray, at: int) -> np.ndarray:
    """Returns the float16 of every block that stands at a byte, [out, block]."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0]


def _nibbles(held: np.ndarray, run: int) -> np.ndarray:
    """Returns numbers [out, in], of which each run of bytes has the lower halves first, then the upper ones."""
    return _planes(held, run, bits=4)


def _planes(held: np.ndarray, run: int, *, bits: int) -> np.ndarray:
    """Returns numbers [out, in] of so many bits, of which each run of bytes has the lowest first."""
    runs = held.reshape(len(held), -1, 1, run)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return ((runs >> shifts) & np.uint8(2**bits - 1)).reshape(len(held), -1)


def _six_bits(held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scales and minima of a block's eight groups, [out, group], of 12 bytes."""
    scale, least, both = (held.reshape(*held.shape[:-1], 3, 4)[..., part, :] for part in range(3))
    scales = np.concatenate((scale & 63, (both & 15) | ((scale >> 2) & 48)), axis=-1)
    minima = np.concatenate((least & 63, (both >> 4) | ((least >> 2) & 48)), axis=-1)
    return scales.reshape(len(held), -1), minima.reshape(len(held), -1)


def _grouped(
    kind: str,
    values: np.ndarray,
    scale: np.ndarray,
    least: np.ndarray | None = None,
    *,
    upper: np.ndarray | None = None,
    bits: int = 0,
    zero: int = 0,
    **factors: np.ndarray,
) -> GroupedWeight:
    turned: dict[str, Any] = {"values": values, "upper": upper, "scale": scale, "least": least}
    turned |= {"factor": None, "least_factor": None, **factors}
    turned = {name: None if one is None else columns(one)[0] for name, one in turned.items()}
    turned["values"] = packed(turned["values"])
    if upper is not None:
        turned["upper"] = packed(turned["upper"], bits)
    return GroupedWeight(**turned, zero=zero, kind=kind)
