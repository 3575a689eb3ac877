"""Questions with a few possible answers: rows whose completions are labels, each written with every label in turn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from jaxlm.data.batching.order import CHOICE_SEED, order
from jaxlm.data.documents import Chat, Document, Pair
from jaxlm.data.encoding import Encoder
from jaxlm.data.examples import Example
from jaxrun.process.errors import UserError
from jaxrun.terminal.sizes import counted

MOST_LABELS = 256
"""Different completions beyond which they are no labels."""


@dataclass(frozen=True, eq=False)
class LabelledRow:
    """A prompt with one of the labels as its completion, which alone is a target.

    Attributes:
        tokens: int32 [length].
        targets: bool [length].
        begins: Of its one text.
    """

    tokens: Int32[np.ndarray, " length"]
    targets: Bool[np.ndarray, " length"]
    begins: tuple[int, ...] = (0,)


@dataclass(frozen=True, eq=False)
class Questions:
    """Prompts with all labels.

    Attributes:
        labels: The labels, sorted.
        candidates: Of each prompt in turn, one for each label in their order.
        right: int64 [questions], index of each prompt's own label; -1 where no training row has it.
    """

    labels: tuple[str, ...]
    candidates: tuple[LabelledRow, ...]
    right: Int[np.ndarray, " questions"]

    def __len__(self) -> int:
        return len(self.right)

    def summary(self, of: int) -> str:
        """Returns a line for a person.

        Args:
            of: Validation rows that there are.
        """
        strange = int((self.right < 0).sum())
        also = "" if not strange else f", {strange:,} with a label that no training row has"
        return f"{len(self):,} of {counted(of, 'validation row')}, by {len(self.labels)} labels{also}"

    def hits(self, losses: Float[np.ndarray, " candidates"]) -> Bool[np.ndarray, " questions"]:
        """Returns which prompts have the lowest loss with their own label.

        Args:
            losses: Summed over the targets of each candidate, in nats. A prompt of which one is not finite is a miss.
        """
        each = losses.reshape(len(self), len(self.labels))
        return np.isfinite(each).all(axis=1) & (each.argmin(axis=1) == self.right)


def labels_of(examples: Sequence[Example]) -> tuple[str, ...]:
    """Returns the different completions of training rows, sorted.

    Raises:
        UserError: A row has none that could be another, or they are fewer than two, or more than `MOST_LABELS`.
    """
    found: set[str] = set()
    for example in examples:
        label = _label(example.document)
        if label is None:
            where = f"{example.source}:{example.line}"
            raise UserError(f"{where}: no answer at the row's end, expected a label there for select_by: accuracy")
        found.add(label)
    if not 2 <= len(found) <= MOST_LABELS:
        raise UserError(
            f"{examples[0].source}: training rows have {len(found):,} different completions, expected 2 to "
            f"{MOST_LABELS}, labels, for select_by: accuracy"
        )
    return tuple(sorted(found))


def ask(examples: Sequence[Example], labels: Sequence[str], encoder: Encoder, longest: int, count: int) -> Questions:
    """Writes rows with every label, a fixed random choice of them.

    Args:
        examples: Validation rows.
        labels: As `labels_of` returns them.
        encoder: Of the task's rows, with only completions as targets.
        longest: Tokens; a row that some label makes longer is not asked.
        count: Questions, if so many rows can be asked.

    Raises:
        UserError: None can be.
    """
    candidates: list[LabelledRow] = []
    right: list[int] = []
    for example in _shuffled(examples):
        if len(right) == count:
            break
        own = [encoder.encode(_with_label(example.document, label)) for label in labels]
        if max(len(one.tokens) for one in own) <= longest:
            candidates += [LabelledRow(one.tokens, one.targets) for one in own]
            label = _label(example.document)
            right.append(labels.index(label) if label in labels else -1)
    if not right:
        raise UserError(
            f"{examples[0].source}: no validation row has an answer and room for every label within {longest} tokens, "
            "expected one for select_by: accuracy"
        )
    return Questions(tuple(labels), tuple(candidates), np.array(right, np.int64))


def _shuffled(examples: Sequence[Example]) -> Iterator[Example]:
    for place in order(len(examples), CHOICE_SEED, 0):
        if _label(examples[place].document) is not None:
            yield examples[place]


def _label(document: Document) -> str | None:
    """Returns the answer at a document's end, where it is text that another could replace."""
    if isinstance(document, Pair):
        return document.completion
    if not isinstance(document, Chat):
        return None
    last = document.messages[-1]
    return last.content if last.role == "assistant" and last.learnt and not last.more else None


def _with_label(document: Document, label: str) -> Document:
    if isinstance(document, Pair):
        return replace(document, completion=label)
    assert isinstance(document, Chat)
    last = replace(document.messages[-1], content=label)
    return replace(document, messages=(*document.messages[:-1], last), first=len(document.messages) - 1)
