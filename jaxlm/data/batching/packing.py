"""Several documents in one row, none of which sees another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32

from jaxlm.data.examples import Example


@dataclass(frozen=True, eq=False)
class Packed:
    """One row of documents, right-padded.

    Attributes:
        tokens: int32 [length]; 0 in the padding.
        targets: bool [length]; the loss counts the prediction of this token from those before it.
        positions: int32 [length]; counted from 0 in every document.
        segments: int32 [length]; 1, 2, ... for the documents, 0 for padding. Attention stays within a segment.
        members: Which of the given examples the row holds, in the row's order.
    """

    tokens: Int32[np.ndarray, " length"]
    targets: Bool[np.ndarray, " length"]
    positions: Int32[np.ndarray, " length"]
    segments: Int32[np.ndarray, " length"]
    members: tuple[int, ...]


def pack(examples: Sequence[Example], length: int) -> list[Packed]:
    """Lays documents into rows: each, in the given order, into the first row that has room for it.

    Args:
        examples: Documents of at most `length` tokens.
        length: Tokens in a row.

    Returns:
        Rows in the order in which they were opened; every document is in exactly one of them.

    Raises:
        ValueError: A document is longer than a row.
    """
    rows: list[list[int]] = []
    room = np.zeros(len(examples), np.int64)  # of the open rows; 0 beyond them
    for index, example in enumerate(examples):
        n = len(example.tokens)
        if n > length:
            raise ValueError(f"{example.source}:{example.line}: {n} tokens, expected at most {length} in a packed row")
        fits = room[: len(rows)] >= n
        row = int(np.argmax(fits)) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
            room[row] = length
        rows[row].append(index)
        room[row] -= n
    return [_lay_out(examples, members, length) for members in rows]


def _lay_out(examples: Sequence[Example], members: Sequence[int], length: int) -> Packed:
    tokens, positions, segments = (np.zeros(length, np.int32) for _ in range(3))
    targets = np.zeros(length, bool)
    start = 0
    for segment, index in enumerate(members, start=1):
        example = examples[index]
        span = slice(start, start + len(example.tokens))
        tokens[span] = example.tokens
        targets[span] = example.targets
        targets[start] = False  # the token before it belongs to another document
        positions[span] = np.arange(len(example.tokens), dtype=np.int32)
        segments[span] = segment
        start = span.stop
    return Packed(tokens, targets, positions, segments, tuple(members))
