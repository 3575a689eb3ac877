"""Formats of rows by their columns: plain text, a prompt with its completion, or a conversation.

| columns | format |
|---|---|
| ``text`` | text |
| ``prompt``, ``completion`` (strings, or lists of messages) and maybe ``system`` | prompt-completion |
| ``messages`` (``role``, ``content``) and maybe ``system`` | messages |
| ``instruction``, ``output`` and maybe ``input``, ``system``, ``history`` | alpaca |
| ``conversations`` (``from``, ``value``) and maybe ``system`` | sharegpt |

Beside conversations ``tools``, ``documents`` and ``chat_template_kwargs`` go to the chat template.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlm.data.documents import Chat, Document, Message, Pair, RowError, Text
from jaxlm.data.sources.turns import (
    SHAREGPT_ROLES,
    TurnReader,
    check_unicode,
    first_system,
    from_json,
    is_nothing,
    kind_of,
    read_tools,
)
from jaxrun.process.errors import nearest

# In the order in which `auto` tries them.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
_EXPECTED = (("text",), ("prompt", "completion"), ("messages",), ("conversations",), ("instruction", "output"))
_OURS = (
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "documents",
    "messages",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tools",
)
"""Variables of the chat template that the program sets, and no row."""
_WHENCE = "a tokenizer that has one and chat_template on, or chat_template as a file or a name such as chatml"


@dataclass(frozen=True)
class RowFormat:
    """The format of a source's rows.

    Attributes:
        format: ``auto``, or the format that every row must have.
        columns: Our names of columns -> the source's own.
        turns: Reads lists of turns.
    """

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    turns: TurnReader = field(default_factory=TurnReader)


@dataclass(frozen=True)
class Reading:
    """A row as read.

    Attributes:
        document: What it says.
        unused: Columns that have a value and are not used.
        notes: What else of it is not used.
        format: What its columns mean.
    """

    document: Document
    unused: tuple[str, ...]
    notes: tuple[str, ...]
    format: str


def read_row(row: Any, layout: RowFormat, *, template: bool) -> Reading:
    """Reads one row.

    Args:
        row: What a line or a table row holds.
        layout: How rows are laid out.
        template: Whether a chat template will write the row; conversations need one.

    Raises:
        RowError: The row lacks a column, or a column has the wrong type or nothing in it.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"given {kind_of(row)}, expected an object with named columns")
    cells = _Cells(row, layout, template)
    format = cells.detect() if layout.format == "auto" else layout.format
    for column in _COLUMNS[format]:
        if not cells.has(column):
            name = cells.name(column)
            raise RowError(f"no '{name}' column{nearest(name, map(str, row))}, expected one in {format} rows")
    document = _READERS[format](cells)
    unused = tuple(str(name) for name, value in row.items() if name not in cells.taken and not is_nothing(value))
    return Reading(document, unused, tuple(dict.fromkeys(cells.notes)), format)


class _Cells:
    """The columns of one row, and which of them were taken."""

    def __init__(self, row: Mapping[str, Any], layout: RowFormat, template: bool) -> None:
        self.template = template
        self.taken: set[str] = set()
        self.notes: list[str] = []
        self._row, self._layout = row, layout

    def name(self, column: str) -> str:
        return self._layout.columns.get(column, column)

    def has(self, column: str) -> bool:
        return self._row.get(self.name(column)) is not None

    def detect(self) -> str:
        for format, columns in _COLUMNS.items():
            if all(self.has(column) for column in columns):
                return format
        given = ", ".join(f"'{name}'" for name in list(self._row)[:8]) or "nothing"
        named = [" and ".join(f"'{self.name(column)}'" for column in columns) for columns in _EXPECTED]
        raise RowError(
            f"columns are {given}, expected {', '.join(named[:-1])}, or {named[-1]}; data.columns can name others"
        )

    def take(self, column: str) -> Any:
        self.taken.add(self.name(column))
        return self._row.get(self.name(column))

    def text(self, column: str) -> str:
        name, value = self.name(column), self.take(column)
        if not isinstance(value, str):
            raise RowError(f"'{name}' is {kind_of(value)}, expected a string")
        if not value.strip():
            raise RowError(f"'{name}' is empty, expected some text")
        check_unicode(value, name)
        return value

    def maybe_text(self, column: str) -> str:
        return "" if is_nothing(self.take(column)) else self.text(column)

    def turns(self, column: str, known: Mapping[str, str] | None = None) -> tuple[Message, ...]:
        turns = self._layout.turns.read(self.take(column), self.name(column), known=known)
        self.notes += turns.notes
        return turns.messages

    def given(self) -> dict[str, Any]:
        """Variables of the chat template beside the turns."""
        found: dict[str, Any] = {}
        if not is_nothing(tools := self.take("tools")):
            found["tools"] = read_tools(tools, self.name("tools"))
        if not is_nothing(documents := from_json(self.take("documents"))):
            found["documents"] = read_tools(documents, self.name("documents"))
        if not is_nothing(settings := from_json(self.take("chat_template_kwargs"))):
            found |= _template_settings(settings, self.name("chat_template_kwargs"))
        return found


def _read_text(cells: _Cells) -> Document:
    return Text(cells.text("text"))


def _read_prompt_completion(cells: _Cells) -> Document:
    prompt, completion = cells.take("prompt"), cells.take("completion")
    names = cells.name("prompt"), cells.name("completion")
    if isinstance(prompt, str) != isinstance(completion, str):
        raise RowError(f"one of {names[0]} and {names[1]} is a string, expected both as strings or both as messages")
    if isinstance(prompt, str):
        check_unicode(prompt, names[0])
        completion = cells.text("completion")
        system = cells.maybe_text("system")
        return _answer(cells, system, (), prompt, completion, "\n\n".join(filter(None, (system, prompt))))
    before, after = cells.turns("prompt"), cells.turns("completion")
    return _conversation(cells, (*before, *after), len(before))


def _read_messages(cells: _Cells) -> Document:
    return _conversation(cells, cells.turns("messages"), 0)


def _read_sharegpt(cells: _Cells) -> Document:
    return _conversation(cells, cells.turns("conversations", SHAREGPT_ROLES), 0)


def _read_alpaca(cells: _Cells) -> Document:
    instruction, completion = cells.text("instruction"), cells.text("output")
    more, system = cells.maybe_text("input"), cells.maybe_text("system")
    history = _history(from_json(cells.take("history")), cells.name("history"))
    asked = f"{instruction}\n\n{more}" if more else instruction
    parts = [system] if system else []
    parts += [f"### Instruction:\n{instruction}", *([f"### Input:\n{more}"] if more else []), "### Response:\n"]
    return _answer(cells, system, history, asked, completion, "\n\n".join(parts))


_READERS: dict[str, Callable[[_Cells], Document]] = {
    "messages": _read_messages,
    "prompt-completion": _read_prompt_completion,
    "sharegpt": _read_sharegpt,
    "alpaca": _read_alpaca,
    "text": _read_text,
}


def _answer(
    cells: _Cells, system: str, history: tuple[Message, ...], asked: str, completion: str, plain_prompt: str
) -> Document:
    if cells.template:
        before = (Message("system", system),) if system else ()
        return Chat((*before, *history, Message("user", asked), Message("assistant", completion)), 0, cells.given())
    if history:
        raise RowError(
            f"'{cells.name('history')}' needs a chat template, expected no history, or a template: {_WHENCE}"
        )
    return Pair(plain_prompt, completion)


def _conversation(cells: _Cells, messages: tuple[Message, ...], first: int) -> Document:
    if not cells.template:
        raise RowError(f"a conversation needs a chat template, expected {_WHENCE}")
    answers = [message for message in messages[first:] if message.role == "assistant"]
    if not answers:
        raise RowError("no assistant turn, expected at least one to learn")
    if not any(answer.learnt for answer in answers):
        raise RowError("no assistant turn that is to be learnt, expected at least one")
    if cells.has("system") and not first_system(messages) and (system := cells.maybe_text("system")):
        messages, first = (Message("system", system), *messages), first + 1 if first else 0
    return Chat(messages, first, cells.given())


def _history(turns: Any, where: str) -> tuple[Message, ...]:
    if is_nothing(turns):
        return ()
    pairs = turns if isinstance(turns, list) else [turns]
    messages: list[Message] = []
    for number, pair in enumerate(pairs):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(f"{where}[{number}] is {kind_of(pair)}, expected a question and its answer, both strings")
        check_unicode(pair, f"{where}[{number}]")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return tuple(messages)


def _template_settings(settings: Any, where: str) -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        raise RowError(f"'{where}' is {kind_of(settings)}, expected an object")
    check_unicode(settings, where)
    for name in settings:
        if name in _OURS:
            raise RowError(f"'{where}' sets '{name}', expected settings of the chat template alone")
    return dict(settings)
