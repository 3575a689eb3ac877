"""Spans of the assistant's answers in a conversation."""

from collections.abc import Iterator, Sequence

from jaxlm.data.chat.template import Conversation, Turn
from jaxlm.data.documents import RowError, shared_beginning

_MARKS = ("xyzzy", "Plugh.")
"""Answers that differ in their first and in their last letter: one of them differs there from any other."""


class TemplateError(Exception):
    """The chat template writes a conversation's beginning differently once the conversation continues."""


def answer_span(conversation: Conversation, index: int, whole: str, at: int) -> tuple[int, int]:
    """Returns where the answer of one turn begins, after what asks for it, and where it ends, its closing tag included.

    Args:
        conversation: The conversation.
        index: The turn.
        whole: All that the template writes.
        at: Where the answer before it ends.

    Raises:
        TemplateError: It cannot be told.
    """
    turns = conversation.turns
    before, through = conversation.beginning(index, generate=True), conversation.beginning(index + 1)
    if whole.startswith(before) and whole.startswith(through):
        span = len(before), len(through)
    else:
        # Some templates (Qwen3's) write an answer differently, without its thoughts, once another question follows.
        first = all(turn["role"] != "assistant" for turn in turns[:index])
        if first and not whole.startswith(conversation.beginning(index)):
            raise TemplateError(f"the chat template rewrites what stands before turn {index + 1}")
        span = _by_change(conversation, index, whole, at) or (0, 0)
    if not at <= span[0] < span[1]:
        raise TemplateError(f"the chat template rewrites turn {index + 1} as the conversation continues")
    return span


def _by_change(conversation: Conversation, index: int, whole: str, at: int) -> tuple[int, int] | None:
    """Finds the answer as what changes when its turn is another one and all others stay."""
    turns = conversation.turns
    asked, asking = conversation.beginning(index), conversation.beginning(index, generate=True)
    opening = asking.removeprefix(asked) if asking.startswith(asked) else ""
    start = len(whole)
    for pair in _changes(turns[index]):
        try:
            others = [conversation.write([*turns[:index], one, *turns[index + 1 :]]) for one in pair]
            closing = conversation.write([*turns[:index], pair[0]]).rpartition(_MARKS[0])[2]
        except RowError:
            continue
        if not all(mark in other for mark, other in zip(_MARKS, others, strict=True)):
            continue
        start = min(start, *(shared_beginning(whole, other) for other in others))
        end = len(whole) - min(shared_beginning(whole[::-1], other[::-1]) for other in others)
        tag, rest = closing.rstrip(), whole[end:]
        if start > end or not rest.startswith(tag):
            continue
        opened = whole.rfind(opening, at, start) if opening else -1
        if opened >= 0 and (not tag or tag not in whole[opened + len(opening) : start]):
            start = opened + len(opening)
        return start, end + shared_beginning(rest, closing)
    return None


def _changes(turn: Turn) -> Iterator[Sequence[Turn]]:
    """Yields pairs of other turns to put in place of one: other texts, an answer alone, other calls."""
    texts = [key for key, value in turn.items() if key != "role" and isinstance(value, str)]
    yield [{**turn, "content": mark, **dict.fromkeys(texts, mark)} for mark in _MARKS]
    yield [{"role": turn["role"], "content": mark} for mark in _MARKS]
    if calls := turn.get("tool_calls"):
        last = calls[-1]
        yield [
            {**turn, "tool_calls": [*calls[:-1], {**last, "function": {**last["function"], "name": mark}}]}
            for mark in _MARKS
        ]
