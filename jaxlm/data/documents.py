"""Documents, before they are tokens: running text, a prompt with its completion, or a conversation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxrun.terminal.printable import one_line


class RowError(Exception):
    """A row that cannot be used; the reason in a few words that can be printed."""

    def __init__(self, reason: str) -> None:
        super().__init__(one_line(reason))


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: Who speaks: ``system``, ``user``, ``assistant``, ``tool``, ...
        content: What is said; None where an assistant only calls tools.
        more: Other keys of the turn that the chat template gets, such as ``tool_calls`` or ``reasoning_content``.
        learnt: Whether this is to be learnt if it is an assistant's turn.
    """

    role: str
    content: str | None
    more: Mapping[str, Any] = field(default_factory=dict)
    learnt: bool = True


@dataclass(frozen=True)
class Text:
    """Running text, all of it to be learnt."""

    text: str


@dataclass(frozen=True)
class Pair:
    """A prompt and its completion, to be written one after the other."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Chat:
    """A conversation, to be written by the tokenizer's chat template.

    Attributes:
        messages: The turns, oldest first.
        first: Only assistant turns from this index on are completions.
        given: What the template gets beside the turns: ``tools``, ``documents``, and a row's own settings by name.
    """

    messages: tuple[Message, ...]
    first: int = 0
    given: Mapping[str, Any] = field(default_factory=dict)


Document = Text | Pair | Chat


def shared_beginning(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Returns how many items, such as letters or turns, two sequences share at their beginning."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
