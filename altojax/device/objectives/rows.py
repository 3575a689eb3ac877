"""The rows of a task's samples: texts, texts that are packed, preference pairs, and answers alone."""

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
    """An answer behind its prompt; see `altojax.device.objectives.preference.ReferredRow`."""

    references: References = field(default_factory=lambda: References.unknown(1))
    number: int = 0
    sign: int = 0

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
    return _referred([[(row.tokens, row.targets, 0) for pair in split for row in pair.rows] for split in splits])


def lone_answer_rows(splits: Sequence[Sequence[Example]], length: int) -> tuple[list[list[AnswerRow]], References]:
    """Returns two rows of each answer, of each split, and the references that they share.

    The first is the answer behind its prompt, the second has the same prompt and an answer to another one, where there
    is another. The answers of a pair are two, the chosen one desirable; as of TRL first come all chosen ones.

    Args:
        splits: Answers with labels, and pairs.
        length: Tokens at which rows are cut.
    """
    return _referred([_with_others(_signed(split), length) for split in splits])


_Row = tuple[np.ndarray, np.ndarray, int]
"""Tokens, targets and sign of a row."""


def _signed(split: Sequence[Example]) -> list[_Row]:
    first = [(one.tokens, last_answer(one.targets), 1 if one.desirable in (None, True) else -1) for one in split]
    return first + [(one.tokens, one.targets, -1) for pair in split if (one := pair.rejected) is not None]


def last_answer(targets: np.ndarray) -> np.ndarray:
    """Returns the last stretch of targets: answers before it are a part of what was asked."""
    before = np.flatnonzero(~targets[: int(np.flatnonzero(targets)[-1])])
    return targets & (np.arange(len(targets)) > before[-1])


def _with_others(rows: Sequence[_Row], length: int) -> list[_Row]:
    prompts = [tokens[: int(targets.argmax())] for tokens, targets, _ in rows]
    said = [prompt.tobytes() for prompt in prompts]
    found: list[_Row] = []
    other = -1  # the nearest row before that has another prompt, from the last one on
    for number, (tokens, targets, sign) in enumerate(rows):
        if said[number - 1] != said[number]:
            other = number - 1
        elif number == 0:
            other = next((-back for back in range(2, len(rows)) if said[-back] != said[0]), -1)
        answer, learnt, _ = rows[other]
        own = len(prompts[other])
        joined = np.concatenate([prompts[number], answer[own:]])[:length]
        counted = np.concatenate([np.zeros(len(prompts[number]), bool), learnt[own:]])[:length]
        found += [(tokens, targets, sign), (joined, counted, sign)]
    return found


def _referred(splits: Sequence[Sequence[_Row]]) -> tuple[list[list[AnswerRow]], References]:
    references = References.unknown(sum(map(len, splits)))
    numbers = iter(range(len(references.values)))
    return [
        [
            AnswerRow(tokens, targets, references=references, number=next(numbers), sign=sign)
            for tokens, targets, sign in split
        ]
        for split in splits
    ], references
