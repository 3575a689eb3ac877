"""Rows as tokens for a person to look at: what a row says, what of it is learnt, and where that ends."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from jaxlm.data.dataset import Dataset
from jaxlm.data.examples import Example
from jaxrun.config.settings import ShowSettings
from jaxrun.process.errors import UserError
from jaxrun.terminal.printable import visible

_LEARNT, _SEEN = "bold green", "dim"
_LABEL = "cyan"


@dataclass(frozen=True)
class Shown:
    """The rows of one data section, as they are to be shown.

    Attributes:
        name: Whose they are.
        data: All of them.
        chosen: Which of them to show.
        tokenizer: Of their base.
    """

    name: str
    data: Dataset
    chosen: tuple[Example, ...]
    tokenizer: PreTrainedTokenizerBase


def choose(name: str, data: Dataset, settings: ShowSettings, tokenizer: PreTrainedTokenizerBase) -> Shown:
    """Chooses rows to show.

    Raises:
        UserError: There is no such row, or it is skipped: then why; both one row and a number of rows are asked for.
    """
    if settings.row is not None and "rows" in settings.model_fields_set:
        raise UserError(f"given row={settings.row} and rows={settings.rows}, expected one of them")
    distinct = {(one.source, one.line): one for one in data.examples}
    if settings.row is None:
        return Shown(name, data, tuple(distinct.values())[: settings.rows], tokenizer)
    found = tuple(one for one in distinct.values() if _is(settings.row, one.source, one.line))
    if not found:
        for skipped in data.skipped:
            if _is(settings.row, skipped.source, skipped.line):
                raise UserError(f"row={settings.row}: {skipped} (so it is skipped)")
        lines = [one.line for one in distinct.values()]
        raise UserError(
            f"row={settings.row}: not among the {len(distinct):,} rows of {data.name}, expected a line such as "
            f"{lines[0]}; without a validation file a share of all rows is in the other split"
        )
    return Shown(name, data, found, tokenizer)


def show(shown: Sequence[Shown], console: Console) -> None:
    """Prints rows: learnt tokens in colour on a terminal, else behind an asterisk."""
    for part in shown:
        _say(console, Text(visible(part.name), _LABEL))
        for line in part.data.summary(shown=10):
            _say(console, Text(f"  {visible(line)}"))
        for example in part.chosen:
            _say(console, Text())
            for row in example.rows:
                for text in _row(row, _answer(example, row), part.tokenizer, marks=not console.is_terminal):
                    _say(console, text)
        _say(console, Text())


def as_json(shown: Sequence[Shown]) -> str:
    """Returns the same as JSON."""
    return json.dumps([_part(part) for part in shown], indent=2, ensure_ascii=False)


def _is(row: int | str, source: str, line: int) -> bool:
    if isinstance(row, int) or row.isdecimal():
        return int(row) == line
    file, _, number = row.rpartition(":")
    return number == str(line) and (source == file or source.endswith(f"/{file}"))


def _say(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)


def _answer(example: Example, row: Example) -> str | None:
    """Returns which answer of a pair a row is, or whether an answer alone is desirable."""
    if example.desirable is not None:
        return "desirable" if example.desirable else "undesirable"
    if example.rejected is None:
        return None
    return "rejected" if row is example.rejected else "chosen"


def _row(example: Example, answer: str | None, tokenizer: PreTrainedTokenizerBase, *, marks: bool) -> Iterator[Text]:
    learnt = int(example.targets.sum())
    cut = ", cut at its end" if example.truncated else ""
    which = "" if answer is None else f" {answer}"
    yield Text(
        f"{example.source}:{example.line}{which}  {len(example.tokens)} tokens, {learnt} of them learnt{cut}", "bold"
    )
    yield _label("text").append_text(_joined(_stretches(example, tokenizer)))
    pieces = [(f"{'*' if marks and one else ''}{piece!r}", one) for piece, one in _pieces(example, tokenizer)]
    yield _label("tokens").append_text(Text(" ").join(_styled(*one) for one in pieces))
    said = [repr(text) for text, one in _stretches(example, tokenizer) if one]
    yield _label("learnt").append_text(Text(" ").join(Text(text, _LEARNT) for text in said))
    ends = " ".join(repr(_piece(end, tokenizer)) for end in dict.fromkeys(example.ends))
    yield _label("end").append(ends or "none: nothing that this row teaches stops generation")


def _joined(stretches: Sequence[tuple[str, bool]]) -> Text:
    text = Text()
    for part, learnt in stretches:
        text.append_text(_styled(part, learnt))
    return Text("\n          ").join(text.split("\n"))


def _label(name: str) -> Text:
    return Text().append(f"  {name:8}", _LABEL)


def _styled(text: str, learnt: bool) -> Text:
    return Text(visible(text), _LEARNT if learnt else _SEEN)


def _pieces(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    return [
        (_piece(token, tokenizer), learnt)
        for token, learnt in zip(example.tokens.tolist(), example.targets.tolist(), strict=True)
    ]


def _piece(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a token as text, or as the tokenizer spells it where it is part of a letter only."""
    text = str(tokenizer.decode([token]))
    return text if text and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))


def _stretches(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """Returns the text in stretches of neighbouring tokens that are all learnt or all not."""
    found: list[tuple[list[int], bool]] = []
    for token, learnt in zip(example.tokens.tolist(), example.targets.tolist(), strict=True):
        if not found or found[-1][1] != learnt:
            found.append(([], learnt))
        found[-1][0].append(token)
    return [(str(tokenizer.decode(tokens)), learnt) for tokens, learnt in found]


def _part(part: Shown) -> dict[str, Any]:
    rows = [
        {
            "source": one.source,
            "line": one.line,
            "text": str(part.tokenizer.decode(one.tokens.tolist())),
            "tokens": [
                {"id": token, "text": piece, "learnt": learnt}
                for token, (piece, learnt) in zip(one.tokens.tolist(), _pieces(one, part.tokenizer), strict=True)
            ],
            "learnt": [text for text, learnt in _stretches(one, part.tokenizer) if learnt],
            "ends": [_piece(end, part.tokenizer) for end in one.ends],
            "cut": one.truncated,
            **({} if (answer := _answer(example, one)) is None else {"answer": answer}),
        }
        for example in part.chosen
        for one in example.rows
    ]
    skipped = [{"source": one.source, "line": one.line, "reason": one.reason} for one in part.data.skipped]
    return {"name": part.name, "rows": rows, "skipped": skipped, "notes": list(part.data.notes)}
