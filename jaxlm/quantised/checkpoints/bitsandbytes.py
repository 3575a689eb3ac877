"""Bitsandbytes' four bits, nf4 and fp4, scales quantised again or not.

Source: ``QuantState`` in ``bitsandbytes.functional``. ``NAME`` is uint8 [out * in / 2, 1], of each byte the upper half
first, flat over [out, in]; ``NAME.absmax`` has a scale for each run of ``blocksize``, which in turn may be places in
``NAME.nested_quant_map`` times ``NAME.nested_absmax`` and more by ``nested_offset``. A JSON is in
``NAME.quant_state.bitsandbytes__nf4``.
"""

import json
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.quantised.checkpoints.scheme import Tensors, columns, sized
from jaxlm.quantised.nf4 import TABLES, Code, TableWeight
from jaxrun.process.errors import UserError

_STATE = ".quant_state.bitsandbytes__"
_NESTED_CODES = 256
_LONGEST = 2**20
"""Numbers that share a scale at the most, far beyond the 4,096 of bitsandbytes."""
_LARGEST = float(np.finfo(np.float32).max)


class _State(NamedTuple):
    """The description of a weight; nested scales in blocks of 0 are none."""

    code: Code
    outputs: int
    inputs: int
    block: int
    nested_block: int
    offset: float


class Bitsandbytes:
    """Weights of four bits."""

    def parts(self, key: str, known: Collection[str]) -> list[str]:
        """See `Scheme.parts`."""
        state = next((key + _STATE + code for code in TABLES if key + _STATE + code in known), None)
        if state is None:
            return []
        nested = [f"{key}.nested_absmax", f"{key}.nested_quant_map"]
        return [key, state, f"{key}.absmax", f"{key}.quant_map", *(nested if nested[0] in known else [])]

    def form(self, key: str, tensors: Tensors) -> TableWeight:
        """See `Scheme.form`."""
        state = _state(key, tensors)
        values: Any = jax.ShapeDtypeStruct((state.inputs // 2, state.outputs), np.uint8)
        scale: Any = jax.ShapeDtypeStruct((state.inputs // state.block, state.outputs), np.float32)
        return TableWeight(values, scale, state.code)

    def read(self, key: str, tensors: Tensors) -> TableWeight:
        """See `Scheme.read`."""
        state = _state(key, tensors)
        count = state.outputs * state.inputs
        values: Any = sized(key, "values", tensors.read(key), count // 2, (np.uint8,)).reshape(state.outputs, -1)
        table = sized(key, "quant_map", tensors.read(f"{key}.quant_map"), 16, (np.float32,))
        if not np.array_equal(table.ravel(), TABLES[state.code]):
            raise UserError(f"{key}: its quant_map is not {state.code}'s, expected bitsandbytes' own table")
        scale: Any = _scales(key, state, tensors, count // state.block).reshape(state.outputs, -1)
        values, scale = columns(values, scale)
        return TableWeight(values, scale, state.code)


def _scales(key: str, state: _State, tensors: Tensors, count: int) -> np.ndarray:
    if not state.nested_block:
        return sized(key, "absmax", tensors.read(f"{key}.absmax"), count, (np.float32,))
    places = sized(key, "absmax", tensors.read(f"{key}.absmax"), count, (np.uint8,)).ravel()
    table = sized(
        key, "nested_quant_map", tensors.read(f"{key}.nested_quant_map"), _NESTED_CODES, (np.float32,)
    ).ravel()
    blocks = -(-count // state.nested_block)
    largest = sized(key, "nested_absmax", tensors.read(f"{key}.nested_absmax"), blocks, (np.float32,)).ravel()
    return table[places] * largest[np.arange(count) // state.nested_block] + np.float32(state.offset)


def _state(key: str, tensors: Tensors) -> _State:
    name = next(key + _STATE + code for code in TABLES if key + _STATE + code in tensors.known)
    try:
        raw = json.loads(tensors.read(name).tobytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: is no JSON, expected what bitsandbytes writes") from error
    said: dict[str, Any] = raw if isinstance(raw, dict) else {}
    nested = f"{key}.nested_absmax" in tensors.known
    shape, block = said.get("shape"), said.get("blocksize")
    nested_block, offset = (said.get("nested_blocksize"), said.get("nested_offset")) if nested else (0, 0.0)
    checks = (
        said.get("quant_type") == name.rpartition("_")[2],
        isinstance(shape, list) and len(shape) == 2 and all(type(one) is int and one > 0 for one in shape),
        _is_block(block) and (not nested or _is_block(nested_block)),
        isinstance(offset, int | float) and abs(offset) <= _LARGEST,
    )
    if not all(checks):
        raise UserError(f"{name}: is {json.dumps(raw)[:120]}, expected quant_type, blocksize and shape of a matrix")
    outputs, inputs = said["shape"]
    if inputs % said["blocksize"]:
        raise UserError(f"{key}: {inputs} inputs in blocks of {block}, expected a multiple of them")
    return _State(said["quant_type"], outputs, inputs, said["blocksize"], nested_block or 0, float(offset or 0))


def _is_block(given: Any) -> bool:
    return type(given) is int and 1 < given <= _LONGEST and given & (given - 1) == 0
