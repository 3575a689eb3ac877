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
        rejected: The other answer of a preference pair, of which this is the one that is preferred.
        desirable: Of an answer with a label whether it is desirable, None of others.
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
    rejected: "Example | None" = None
    desirable: bool | None = None

    @property
    def rows(self) -> "tuple[Example, ...]":
        """Itself and, of a pair, the other answer."""
        return (self,) if self.rejected is None else (self, self.rejected)


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
    for example in (row for one in examples for row in one.rows):
        highest = int(example.tokens.max(initial=0))
        if highest >= vocab_size:
            raise UserError(
                f"{example.source}:{example.line}: the tokenizer gives token {highest}, expected ids below the model's "
                f"vocabulary of {vocab_size}; is this the model's own tokenizer?"
            )


def unread_labels(examples: Iterable[Example]) -> list[str]:
    """Says that undesirable answers are learnt like desirable ones, where there are such, for who reads no labels."""
    bad = sum(example.desirable is False for example in examples)
    return [f"'label' is not used: {bad:,} undesirable answers are learnt like desirable ones"] if bad else []


def check_labels(examples: Iterable[Example]) -> None:
    """Makes sure that of each answer it is known whether it is desirable: by a label, or as it is one of a pair.

    Raises:
        UserError: Of one it is not.
    """
    for example in examples:
        if example.rejected is None and example.desirable is None:
            raise UserError(
                f"{example.source}:{example.line}: a row of format {example.format}, expected an answer with a 'label' "
                "that is true or false, or a preference pair, for loss_type: kto and apo_zero_unpaired"
            )


def check_samples(examples: Iterable[Example], *, pairs: bool) -> None:
    """Makes sure that rows are what is wanted of them.

    Args:
        examples: The rows.
        pairs: Whether preference pairs are wanted, or rows with one answer each.

    Raises:
        UserError: One is not.
    """
    for example in examples:
        if pairs and example.rejected is None:
            raise UserError(
                f"{example.source}:{example.line}: a row of format {example.format}, expected a preference pair, with "
                "'chosen' and 'rejected', for objective: dpo"
            )
        if not pairs and example.rejected is not None:
            raise UserError(
                f"{example.source}:{example.line}: a preference pair, expected a row with one answer; pairs are for "
                "objective: dpo of altojax tune, and for altojax evaluate"
            )
