"""The `gguf` package's reader within bounds: it takes no number of a file's for more than the file has room for."""

import itertools
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np

MOST_VALUES = 4_000_000
"""Values in a header: each takes hundreds of bytes in memory. A vocabulary of 200,000 tokens has 1.5 million."""
TOKEN_BYTES, VOCABULARY_BYTES = 2048, 2**23
"""Bytes of a token, and of all: how tokens join is found by trying every cut of each."""
KNOWN_KINDS = frozenset(int(kind) for kind in gguf.GGMLQuantizationType)


class UnknownKind(Exception):
    """A tensor is stored in a kind of numbers that the package does not know."""


class BoundedReader(gguf.GGUFReader):
    """A GGUF file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        """Reads the header.

        Raises:
            ValueError: It is none, says more than the file holds, or has tensors that overlap.
            RecursionError: Its lists are nested too deeply.
            UnknownKind: A tensor's numbers are of a kind that is newer than the package.
        """
        self._values = 0
        super().__init__(path)
        self._check_tensors()
        self._check_vocabulary()

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        self._values += 1
        if self._values > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values in its header")
        kind = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
        need = int(offset) + kind.itemsize * int(count)
        if need > self.data.nbytes:
            raise ValueError(f"needs {need:,} bytes and has {self.data.nbytes:,}")
        return np.frombuffer(self.data, kind, int(count), int(offset))  # slicing a memmap takes several times as long

    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        for field in fields:
            _, name, _, _, kind, _ = field.parts
            if int(kind[0]) not in KNOWN_KINDS:
                raise UnknownKind(f"weight {bytes(name).decode(errors='replace')} is stored as kind {int(kind[0])}")
        super()._build_tensors(start_offs, fields)

    def _check_tensors(self) -> None:
        for tensor in self.tensors:
            if math.prod(map(int, tensor.shape)) != int(tensor.n_elements):
                raise ValueError(f"tensor {tensor.name} has more numbers than can be counted")
            if (tensor.data_offset - self.data_offset) % self.alignment:
                raise ValueError(f"tensor {tensor.name} does not begin at a multiple of {self.alignment} bytes")
        placed = sorted((one for one in self.tensors if one.n_bytes), key=lambda one: one.data_offset)
        for one, other in itertools.pairwise(placed):
            if one.data_offset + one.n_bytes > other.data_offset:
                raise ValueError(f"tensors {one.name} and {other.name} overlap")

    def _check_vocabulary(self) -> None:
        field = self.fields.get("tokenizer.ggml.tokens")
        sizes = [] if field is None else [field.parts[part].nbytes for part in field.data]
        longest = max(sizes, default=0)
        if longest > TOKEN_BYTES:
            raise ValueError(f"a token of {longest:,} bytes, expected at most {TOKEN_BYTES:,}")
        if sum(sizes) > VOCABULARY_BYTES:
            raise ValueError(f"tokens of {sum(sizes):,} bytes in all, expected at most {VOCABULARY_BYTES:,}")
