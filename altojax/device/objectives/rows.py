"""The rows of a task's samples: texts, texts that are packed, and the two answers of each preference pair."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float32

from jaxlm.data.batching.packing import pack
from jaxlm.data.examples import Example


@dataclass(frozen=True, eq=False)
class TextRow:
    """A row of a batch; see `altojax.device.batch.TokenRow`."""

    tokens: np.ndarray
    targets: np.ndarray
    begins: Sequence[int] = (0,)


@dataclass(frozen=True, eq=False)
class References:
    """Log-probabilities of the answers of a task's pairs under its reference, the base without adapters.

    Rows have their numbers here. They are filled in once the base is loaded, for all trials of the task.

    Attributes:
        values: float32, in nats; nan until it is known.
    """

    values: Float32[np.ndarray, " rows"]

    @classmethod
    def unknown(cls, rows: int) -> "References":
        """Returns as many that are not known yet."""
        return cls(np.full(rows, np.nan, np.float32))


@dataclass(frozen=True, eq=False)
class AnswerRow(TextRow):
    """An answer of a pair; see `altojax.device.objectives.preference.ReferredRow`."""

    references: References = field(default_factory=lambda: References.unknown(1))
    number: int = 0

    @property
    def reference(self) -> float:
        """Log-probability of the answer under the reference, in nats."""
        return float(self.references.values[self.number])

    @cached_property
    def answer_tokens(self) -> int:
        """Its targets."""
        return int(self.targets.sum())


def text_rows(examples: Sequence[Example], packing: bool, length: int) -> list[TextRow]:
    """Returns examples as rows of at most `length` tokens, each alone or several packed."""
    if not packing:
        return [TextRow(one.tokens, one.targets) for one in examples]
    return [TextRow(one.tokens, one.targets, one.begins) for one in pack(examples, length)]


def answer_rows(splits: Sequence[Sequence[Example]]) -> tuple[list[list[AnswerRow]], References]:
    """Returns the rows of pairs, pair by pair, of each split, and the references that they share."""
    rows = [[row for pair in split for row in pair.rows] for split in splits]
    references = References.unknown(sum(map(len, rows)))
    numbers = iter(range(len(references.values)))
    return [
        [AnswerRow(row.tokens, row.targets, references=references, number=next(numbers)) for row in split]
        for split in rows
    ], references
