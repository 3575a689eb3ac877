"""Questions that are answered in free text: prompts, the references to compare answers with, and how that is done."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from jaxlm.data.batching.order import CHOICE_SEED, order
from jaxlm.data.documents import Document, Pair, RowError, Text
from jaxlm.data.encoding import Encoder
from jaxlm.data.examples import Example
from jaxrun.process.errors import UserError
from jaxrun.terminal.sizes import counted
from jaxrun.untrusted.patterns import Pattern

MOST_QUESTIONS = 4096
"""Rows beyond which more say no more: their share of right answers is known to within a hundredth."""


@dataclass(frozen=True, eq=False)
class OpenQuestions:
    """Prompts to continue, each with its reference.

    Attributes:
        tokens: int32 [length] each; what is continued.
        prompts: The prompts as text, as rows have them; of a conversation, what the user said last.
        references: The right answers as text, likewise.
        max_new_tokens: Tokens of an answer, at most.
        ends: Tokens that end an answer.
        left_out: Rows without room for an answer.
    """

    tokens: tuple[Int32[np.ndarray, " length"], ...]
    prompts: tuple[str, ...]
    references: tuple[str, ...]
    max_new_tokens: int
    ends: tuple[int, ...]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def summary(self, of: int) -> str:
        """Returns a line for a person.

        Args:
            of: Validation rows that there are.
        """
        also = f"; {self.left_out:,} have no room for one" if self.left_out else ""
        new = counted(self.max_new_tokens, "token")
        return f"{len(self):,} of {counted(of, 'validation row')}, by answers of up to {new}{also}"

    def first(self, count: int) -> "OpenQuestions":
        """Returns so many of them."""
        kept = self.tokens[:count], self.prompts[:count], self.references[:count]
        return OpenQuestions(*kept, self.max_new_tokens, self.ends, self.left_out)


def open_questions(
    examples: Sequence[Example],
    encoder: Encoder,
    *,
    ends: Iterable[int],
    longest: int,
    positions: int,
    max_new_tokens: int | None,
    lengths: Callable[[Sequence[str]], Sequence[int]],
    purpose: str,
) -> OpenQuestions:
    """Asks validation rows, those that have room for an answer, at most `MOST_QUESTIONS`, in a fixed random order.

    Args:
        examples: The rows.
        encoder: Of the task's rows.
        ends: Tokens that end an answer.
        longest: Tokens that a prompt may have.
        positions: Tokens that a prompt and its answer may have together.
        max_new_tokens: Tokens of an answer, at most; None is as many as the longest reference has with its end.
        lengths: Returns the tokens of texts.
        purpose: What they are asked for, such as ``select_by: exact_match``.

    Raises:
        UserError: A row has no prompt or no answer, or none has room.
    """
    found = []
    for place in order(len(examples), CHOICE_SEED, 0)[:MOST_QUESTIONS]:
        example = examples[place]
        try:
            found.append((encoder.prompt(example.document), _asked(example.document)))
        except RowError as error:
            raise UserError(f"{example.source}:{example.line}: {error}, for {purpose}") from None
    if max_new_tokens is None:
        room = positions - min(len(one.tokens) for one, _ in found)
        max_new_tokens = max(1, min(1 + max(lengths([one.answer for one, _ in found])), room))
    fit = [(one, text) for one, text in found if len(one.tokens) <= min(longest, positions - max_new_tokens)]
    if not fit:
        raise UserError(
            f"{examples[0].source}: no validation row has a prompt of at most "
            f"{min(longest, positions - max_new_tokens)} tokens, which leaves room for {max_new_tokens} of an answer, "
            f"expected one for {purpose}; or a smaller metric.max_new_tokens"
        )
    return OpenQuestions(
        tuple(one.tokens for one, _ in fit),
        tuple(text for _, text in fit),
        tuple(one.answer for one, _ in fit),
        max_new_tokens,
        tuple(dict.fromkeys(ends)),
        len(found) - len(fit),
    )


def check_references(questions: OpenQuestions, pattern: str | None) -> None:
    """Refuses references of which nothing is compared, so that no answer or an empty one would be right.

    Raises:
        UserError: One is empty, or the pattern finds nothing in it.
    """
    bad = next((one for one in questions.references if not answer_of(one, pattern)), None)
    if bad is None:
        return
    given = counted(sum(not answer_of(one, pattern) for one in questions.references), "validation row")
    if pattern is None:
        raise UserError(f"{given}: the answer is empty, expected text for select_by: exact_match")
    raise UserError(
        f"metric.answer_pattern: '{pattern}' finds nothing in the answer of {given}, such as {bad[-60:]!r}, expected a "
        "match in each"
    )


def answer_of(text: str, pattern: str | None) -> str:
    """Returns what of an answer is compared: all of it without outer white space, or the last match of `pattern`."""
    if pattern is None:
        return text.strip()
    found = Pattern(pattern, "answer_pattern").last(text)
    return "" if found is None else (found[1] if found.re.groups else found[0]).strip()


def _asked(document: Document) -> str:
    """Returns the prompt as a row has it; of a conversation, what the user said last."""
    if isinstance(document, Text):
        return document.text
    if isinstance(document, Pair):
        return document.prompt
    return next((one.content or "" for one in reversed(document.messages) if one.role == "user"), "")
