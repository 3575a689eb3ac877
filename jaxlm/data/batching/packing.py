"""Several documents in one row, none of which sees another."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from jaxtyping import Bool, Int32

from jaxlm.data.examples import Example


@dataclass(frozen=True, eq=False)
class Packed:
    """Documents one after the other.

    Attributes:
        tokens: int32 [tokens].
        targets: bool [tokens]; the loss counts the prediction of this token from those before it.
        begins: The first token of each document.
        members: Which of the given examples they are, in their order.
    """

    tokens: Int32[np.ndarray, " tokens"]
    targets: Bool[np.ndarray, " tokens"]
    begins: tuple[int, ...]
    members: tuple[int, ...]


def pack(examples: Sequence[Example], length: int) -> list[Packed]:
    """Lays documents into rows: each, in the given order, into the first row that has room for it.

    Args:
        examples: Documents of at most `length` tokens.
        length: Tokens in a row, at most.

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
    return [_joined(examples, members) for members in rows]


def _joined(examples: Sequence[Example], members: Sequence[int]) -> Packed:
    own = [examples[index] for index in members]
    sizes = [len(example.tokens) for example in own]
    begins = tuple(accumulate(sizes[:-1], initial=0))
    targets = np.concatenate([example.targets for example in own])
    targets[list(begins)] = False  # the token before it belongs to another document
    return Packed(np.concatenate([example.tokens for example in own]), targets, begins, tuple(members))
