"""Formats of rows by their columns: plain text, a prompt with its completion, or a conversation.

| columns | format |
|---|---|
| ``text`` | text |
| ``prompt``, ``completion`` (strings, or lists of messages) and maybe ``system`` | prompt-completion |
| ``messages`` (``role``, ``content``) and maybe ``system`` | messages |
| ``instruction``, ``output`` and maybe ``input``, ``system``, ``history`` | alpaca |
| ``conversations`` (``from``, ``value``) and maybe ``system`` | sharegpt |
| ``chosen`` and ``rejected`` beside any of these prompts, or with the prompt in both | preference |
| ``label``, true or false, beside any of these with an answer | unpaired-preference |

Beside conversations ``tools``, ``documents`` and ``chat_template_kwargs`` go to the chat template.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxlm.data.documents import Document, RowError, Text
from jaxlm.data.sources.cells import Cells, RowFormat, alpaca, conversation, prompted
from jaxlm.data.sources.preferences import read_preference
from jaxlm.data.sources.turns import SHAREGPT_ROLES, is_nothing, kind_of
from jaxrun.process.errors import nearest

# In the order in which `auto` tries them.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
_EXPECTED = (
    ("text",),
    ("prompt", "completion"),
    ("messages",),
    ("conversations",),
    ("instruction", "output"),
    ("chosen", "rejected"),
)


@dataclass(frozen=True)
class Reading:
    """A row as read.

    Attributes:
        document: What it says.
        unused: Columns that have a value and are not used.
        notes: What else of it is not used.
        format: What its columns mean; of a preference pair those of its prompt, of an answer that is desirable or not
            those beside its label.
        rejected: Of a preference pair the other answer, behind the same prompt.
        desirable: Of an answer alone what its label says, None where it has none.
    """

    document: Document
    unused: tuple[str, ...]
    notes: tuple[str, ...]
    format: str
    rejected: Document | None = None
    desirable: bool | None = None


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
    cells = Cells(row, layout, template)
    desirable = cells.flag("label") if layout.format in ("auto", "unpaired-preference") else None
    if layout.format == "unpaired-preference" and desirable is None:
        given = f"is {kind_of(row[cells.name('label')])}" if cells.has("label") else "has no value"
        raise RowError(f"'{cells.name('label')}' {given}, expected true or false")
    format = _detect(cells, row) if layout.format in ("auto", "unpaired-preference") else layout.format
    for column in _COLUMNS[format]:
        if not cells.has(column):
            name = cells.name(column)
            if name in row:
                raise RowError(f"'{name}' is null, expected a value in {format} rows")
            raise RowError(f"no '{name}' column{nearest(name, map(str, row))}, expected one in {format} rows")
    rejected = None
    if format == "preference":
        document, rejected = read_preference(cells)
        format = "alpaca" if "instruction" in cells.taken else "prompt-completion"
        desirable = None
    else:
        document = _READERS[format](cells)
        desirable = None if format == "text" else desirable
    if desirable is not None:
        cells.take("label")
    unused = tuple(str(name) for name, value in row.items() if name not in cells.taken and not is_nothing(value))
    return Reading(document, unused, tuple(dict.fromkeys(cells.notes)), format, rejected, desirable)


def _detect(cells: Cells, row: Mapping[str, Any]) -> str:
    for format, columns in _COLUMNS.items():
        if all(cells.has(column) for column in columns):
            return format
    given = ", ".join(f"'{name}'{' (null)' if row[name] is None else ''}" for name in list(row)[:8]) or "nothing"
    named = [" and ".join(f"'{cells.name(column)}'" for column in columns) for columns in _EXPECTED]
    raise RowError(
        f"columns are {given}, expected {', '.join(named[:-1])}, or {named[-1]}; data.columns can name others"
    )


def _read_text(cells: Cells) -> Document:
    return Text(cells.text("text"))


def _read_prompt_completion(cells: Cells) -> Document:
    prompt, completion = cells.take("prompt"), cells.take("completion")
    names = cells.name("prompt"), cells.name("completion")
    if isinstance(prompt, str) != isinstance(completion, str):
        raise RowError(f"one of {names[0]} and {names[1]} is a string, expected both as strings or both as messages")
    if isinstance(prompt, str):
        return prompted(cells, cells.text("completion"))
    before, after = cells.turns("prompt"), cells.turns("completion")
    return conversation(cells, (*before, *after), len(before))


def _read_messages(cells: Cells) -> Document:
    return conversation(cells, cells.turns("messages"), 0)


def _read_sharegpt(cells: Cells) -> Document:
    return conversation(cells, cells.turns("conversations", SHAREGPT_ROLES), 0)


def _read_alpaca(cells: Cells) -> Document:
    return alpaca(cells, cells.text("output"))


_READERS: dict[str, Callable[[Cells], Document]] = {
    "messages": _read_messages,
    "prompt-completion": _read_prompt_completion,
    "sharegpt": _read_sharegpt,
    "alpaca": _read_alpaca,
    "text": _read_text,
}
