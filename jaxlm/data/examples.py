"""Rows to learn from, as tokens."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32

from jaxlm.data.documents import Document
from jaxrun.process.errors import UserError


@dataclass(frozen=True, eq=False)
class Example:
    """One row to learn from.

    Attributes:
        tokens: int32 [length].
        targets: bool [length]; true where the loss counts the prediction of this token from those before it.
        line: Line of the file, or row of the table, from 1.
        source: File or data set.
        document: What was written as tokens.
        truncated: Whether tokens were cut off its end.
        ends: Tokens that end what is learnt of it.
        ended: Whether its last completion has one.
        origin: Which of the sources of its data section it is from.
        format: What the columns of the row mean.
    """

    tokens: Int32[np.ndarray, " length"]
    targets: Bool[np.ndarray, " length"]
    line: int
    source: str
    document: Document
    truncated: bool = False
    ends: tuple[int, ...] = ()
    ended: bool = True
    origin: int = 0
    format: str = "text"


@dataclass(frozen=True)
class Skipped:
    """A row that is left out, and why.

    Attributes:
        source: File or data set.
        line: Line of the file, or row of the table, from 1.
        reason: Why.
        unusable: False where the row is fine and only longer than what is asked for.
    """

    source: str
    line: int
    reason: str
    unusable: bool = True

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason}"


def check_vocabulary(examples: Iterable[Example], vocab_size: int) -> None:
    """Makes sure that the model has an embedding for every token.

    Raises:
        UserError: A token id is `vocab_size` or more: the tokenizer belongs to another model.
    """
    for example in examples:
        highest = int(example.tokens.max(initial=0))
        if highest >= vocab_size:
            raise UserError(
                f"{example.source}:{example.line}: the tokenizer gives token {highest}, expected ids below the model's "
                f"vocabulary of {vocab_size}; is this the model's own tokenizer?"
            )
