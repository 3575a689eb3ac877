"""The columns of one row, and the documents that they make."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlm.data.documents import Chat, Document, Message, Pair, RowError
from jaxlm.data.sources.turns import (
    TurnReader,
    check_unicode,
    first_system,
    from_json,
    is_nothing,
    kind_of,
    read_tools,
)

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


class Cells:
    """The columns of one row, and which of them were taken.

    Attributes:
        template: Whether a chat template will write the row.
        taken: Columns that were, by their own names.
        notes: What else is not used.
    """

    def __init__(self, row: Mapping[str, Any], layout: RowFormat, template: bool) -> None:
        """Takes nothing yet."""
        self.template = template
        self.taken: set[str] = set()
        self.notes: list[str] = []
        self._row, self._layout = row, layout

    def name(self, column: str) -> str:
        """Returns what the source calls a column."""
        return self._layout.columns.get(column, column)

    def has(self, column: str) -> bool:
        """Whether a column has a value."""
        return self._row.get(self.name(column)) is not None

    def take(self, column: str) -> Any:
        """Returns the value of a column, which is then used."""
        self.taken.add(self.name(column))
        return self._row.get(self.name(column))

    def flag(self, column: str) -> bool | None:
        """Returns a column that says true or false, maybe as text as CSV has it; None where it says something else."""
        value = self._row.get(self.name(column))
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
        return value if isinstance(value, bool) else None

    def text(self, column: str) -> str:
        """Takes a column of text.

        Raises:
            RowError: It is none, or empty.
        """
        name, value = self.name(column), self.take(column)
        if not isinstance(value, str):
            raise RowError(f"'{name}' is {kind_of(value)}, expected a string")
        if not value.strip():
            raise RowError(f"'{name}' is empty, expected some text")
        check_unicode(value, name)
        return value

    def maybe_text(self, column: str) -> str:
        """Takes a column of text, which may be empty or missing."""
        return "" if is_nothing(self.take(column)) else self.text(column)

    def turns(self, column: str, known: Mapping[str, str] | None = None) -> tuple[Message, ...]:
        """Takes a column of turns; arguments as of `TurnReader.read`."""
        return self.read_turns(self.take(column), self.name(column), known)

    def read_turns(self, given: Any, where: str, known: Mapping[str, str] | None = None) -> tuple[Message, ...]:
        """Reads turns; arguments as of `TurnReader.read`."""
        turns = self._layout.turns.read(given, where, known=known)
        self.notes += turns.notes
        return turns.messages

    def is_turn(self, given: Any) -> bool:
        """Whether a value says who speaks."""
        keys = ("role", "from") if self._layout.turns.role_key is None else (self._layout.turns.role_key,)
        return isinstance(given, Mapping) and any(key in given for key in keys)

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


def prompted(cells: Cells, completion: str) -> Document:
    """Returns a completion behind the text of the column ``prompt``."""
    prompt, system = cells.take("prompt"), cells.maybe_text("system")
    check_unicode(prompt, cells.name("prompt"))
    return answer(cells, system, (), prompt, completion, "\n\n".join(filter(None, (system, prompt))))


def alpaca(cells: Cells, completion: str) -> Document:
    """Returns a completion behind the instruction of alpaca."""
    instruction = cells.text("instruction")
    more, system = cells.maybe_text("input"), cells.maybe_text("system")
    history = history_of(from_json(cells.take("history")), cells.name("history"))
    asked = f"{instruction}\n\n{more}" if more else instruction
    parts = [system] if system else []
    parts += [f"### Instruction:\n{instruction}", *([f"### Input:\n{more}"] if more else []), "### Response:\n"]
    return answer(cells, system, history, asked, completion, "\n\n".join(parts))


def answer(
    cells: Cells, system: str, history: tuple[Message, ...], asked: str, completion: str, plain_prompt: str
) -> Document:
    """Returns one answer to what is asked, written by the chat template or plainly.

    Raises:
        RowError: There is a history, and no template to write it.
    """
    if cells.template:
        before = (Message("system", system),) if system else ()
        return Chat((*before, *history, Message("user", asked), Message("assistant", completion)), 0, cells.given())
    if history:
        raise RowError(
            f"'{cells.name('history')}' needs a chat template, expected no history, or a template: {_WHENCE}"
        )
    return Pair(plain_prompt, completion)


def conversation(cells: Cells, messages: tuple[Message, ...], first: int) -> Document:
    """Returns a conversation whose completions begin at turn `first`, with the system prompt of a column, if any.

    Raises:
        RowError: There is no template to write it, or nothing to learn in it.
    """
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


def history_of(turns: Any, where: str) -> tuple[Message, ...]:
    """Returns earlier questions and answers as turns.

    Raises:
        RowError: They are none.
    """
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
