"""What the columns of a row mean: plain text, a prompt with its completion, or a conversation.

| columns | format |
|---|---|
| ``text`` | text |
| ``prompt``, ``completion`` (strings, or lists of messages) | prompt-completion |
| ``messages`` (``role``, ``content``) | messages |
| ``instruction``, ``output`` and maybe ``input``, ``system`` | alpaca |
| ``conversations`` (``from``, ``value``) and maybe ``system`` | sharegpt |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import nearest


class RowError(Exception):
    """Why one row cannot be used, in a few words."""


@dataclass(frozen=True)
class Message:
    """One turn: who speaks (``system``, ``user``, ``assistant``, ``tool``, ...) and what is said."""

    role: str
    content: str


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
    """

    messages: tuple[Message, ...]
    first: int = 0


Document = Text | Pair | Chat

# In the order in which `auto` tries them.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


def read_document(row: Any, format: str, *, template: bool) -> Document:
    """Reads one row.

    Args:
        row: What a line or a table row holds.
        format: ``auto``, or the format that the row must have.
        template: Whether a chat template will write the row; conversations need one.

    Raises:
        RowError: The row lacks a column, or a column has the wrong type or nothing in it.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"given {_kind(row)}, expected an object with named columns")
    if format == "auto":
        format = _detect(row)
    for column in _COLUMNS[format]:
        if row.get(column) is None:
            raise RowError(f"no '{column}' column{nearest(column, map(str, row))}, expected one in {format} rows")
    return _READERS[format](row, template)


def _detect(row: Mapping[str, Any]) -> str:
    for format, columns in _COLUMNS.items():
        if all(row.get(column) is not None for column in columns):
            return format
    given = ", ".join(f"'{name}'" for name in list(row)[:8]) or "nothing"
    raise RowError(
        f"columns are {given}, expected 'text', 'prompt' and 'completion', 'messages', 'conversations', "
        "or 'instruction' and 'output'"
    )


def _read_text(row: Mapping[str, Any], template: bool) -> Document:
    return Text(_string(row, "text"))


def _read_prompt_completion(row: Mapping[str, Any], template: bool) -> Document:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) != isinstance(completion, str):
        raise RowError("given one of prompt and completion as a string, expected both as strings or both as messages")
    if isinstance(prompt, str):
        return _answer((), prompt, _string(row, "completion"), prompt, template)
    before = _messages(prompt, "prompt", "role", "content", {})
    after = _messages(completion, "completion", "role", "content", {})
    return _conversation((*before, *after), len(before), template)


def _read_messages(row: Mapping[str, Any], template: bool) -> Document:
    return _conversation(_messages(row["messages"], "messages", "role", "content", {}), 0, template)


def _read_sharegpt(row: Mapping[str, Any], template: bool) -> Document:
    turns = row["conversations"]
    named = isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and "role" in turns[0]
    keys = ("role", "content") if named else ("from", "value")
    messages = _messages(turns, "conversations", *keys, _SHAREGPT_ROLES)
    if isinstance(row.get("system"), str) and row["system"]:
        messages = (Message("system", _string(row, "system")), *messages)
    return _conversation(messages, 0, template)


def _read_alpaca(row: Mapping[str, Any], template: bool) -> Document:
    instruction, completion = _string(row, "instruction"), _string(row, "output")
    more = _string(row, "input") if row.get("input") else ""
    system = (Message("system", _string(row, "system")),) if row.get("system") else ()
    asked = f"{instruction}\n\n{more}" if more else instruction
    parts = [turn.content for turn in system]
    parts += [f"### Instruction:\n{instruction}", *([f"### Input:\n{more}"] if more else []), "### Response:\n"]
    return _answer(system, asked, completion, "\n\n".join(parts), template)


_READERS: dict[str, Callable[[Mapping[str, Any], bool], Document]] = {
    "messages": _read_messages,
    "prompt-completion": _read_prompt_completion,
    "sharegpt": _read_sharegpt,
    "alpaca": _read_alpaca,
    "text": _read_text,
}


def _answer(system: tuple[Message, ...], asked: str, completion: str, plain_prompt: str, template: bool) -> Document:
    _check_unicode(plain_prompt, "prompt")
    if not template:
        return Pair(plain_prompt, completion)
    return Chat((*system, Message("user", asked), Message("assistant", completion)))


def _conversation(messages: tuple[Message, ...], first: int, template: bool) -> Document:
    if not template:
        raise RowError("a conversation needs a chat template, expected a tokenizer that has one and chat_template on")
    if not any(message.role == "assistant" for message in messages[first:]):
        raise RowError("no assistant turn, expected at least one to learn")
    return Chat(messages, first)


def _messages(
    turns: Any, column: str, role_key: str, content_key: str, roles: Mapping[str, str]
) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise RowError(f"'{column}' is {_kind(turns)}, expected a list of messages")
    messages = []
    for number, turn in enumerate(turns):
        where = f"{column}[{number}]"
        if not isinstance(turn, Mapping):
            raise RowError(f"{where} is {_kind(turn)}, expected an object with '{role_key}' and '{content_key}'")
        role, content = turn.get(role_key), _content(turn.get(content_key))
        if not isinstance(role, str) or not role:
            raise RowError(f"{where} has no '{role_key}', expected who speaks")
        if roles and role not in roles:
            raise RowError(f"{where} is by '{role}'{nearest(role, roles)}, expected one of {', '.join(roles)}")
        if not isinstance(content, str):
            raise RowError(f"{where} has {_kind(content)} as '{content_key}', expected a string")
        role = roles.get(role, role)
        _check_unicode(content, where)
        if role == "assistant" and not content.strip():
            raise RowError(f"{where} is empty, expected something to learn")
        messages.append(Message(role, content))
    return tuple(messages)


def _content(value: Any) -> Any:
    """Joins content given in parts (``[{"type": "text", "text": ...}]``); other values pass unchanged."""
    if (
        isinstance(value, list)
        and value
        and all(
            isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in value
        )
    ):
        return "".join(part["text"] for part in value)
    return value


def _string(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise RowError(f"'{column}' is {_kind(value)}, expected a string")
    if not value.strip():
        raise RowError(f"'{column}' is empty, expected some text")
    _check_unicode(value, column)
    return value


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"'{where}' holds half a surrogate pair, expected valid Unicode") from error


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), f"a {type(value).__name__}")
