"""The rows of sources as examples: read, encoded, and what is wrong with them or not used of them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from itertools import groupby
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from jaxlm.data.batching.order import CHOICE_SEED, order
from jaxlm.data.chat.answer_spans import TemplateError
from jaxlm.data.chat.chat_templates import foreign_tags
from jaxlm.data.config import DataConfig, DataSource
from jaxlm.data.documents import Chat, Document, RowError
from jaxlm.data.encoding import Encoder
from jaxlm.data.examples import Example, Skipped
from jaxlm.data.sources.formats import RowFormat, read_row
from jaxlm.data.sources.rows import SourceRow, files_left_out, read_rows
from jaxlm.data.sources.tally import Tally
from jaxlm.data.sources.turns import TurnReader
from jaxrun.process.errors import UserError
from jaxrun.terminal.printable import one_line
from jaxrun.untrusted.confined import Exceeded

_WORTH_A_WARNING, _TOO_MANY = 0.1, 0.5
"""Shares of rows that cannot be used: above the one a run is warned, above the other it is not begun."""


def read_examples(
    config: DataConfig,
    sources: Sequence[DataSource],
    tokenizer: PreTrainedTokenizerBase,
    most: int | None,
    day: date | None,
) -> tuple[tuple[Example, ...], tuple[Skipped, ...], tuple[str, ...]]:
    """Reads and encodes the rows of sources, in their order.

    Args:
        config: How to write them as tokens.
        sources: Where they are and how they are laid out.
        tokenizer: The base model's.
        most: Use at most this many rows, a fixed random choice.
        day: What the chat template takes for today; None is today.

    Returns:
        Examples, skipped rows, and lines on what is not used.

    Raises:
        UserError: A source cannot be read, has too few usable rows, or has a bad one where bad rows are errors.
    """
    encoder = Encoder.of(config, tokenizer, day)
    notes = [
        f"chat_template: '{tag}' is no token of this tokenizer and is written letter by letter"
        for tag in foreign_tags(tokenizer, config.chat_template)
    ]
    for source in sources:
        if names := files_left_out(source.path):
            more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            notes.append(f"{source.path}: not read: {', '.join(names[:5])}{more}")
    rows = [(origin, row) for origin, source in enumerate(sources) for row in _rows(source)]
    if most is not None and most < len(rows):
        rows = [rows[index] for index in sorted(order(len(rows), CHOICE_SEED, 0)[:most])]
    examples: list[Example] = []
    skipped: list[Skipped] = []
    for origin, group in groupby(rows, key=lambda row: row[0]):
        used, left_out, told = _encode(config, sources[origin], origin, [row for _, row in group], encoder)
        examples += used
        skipped += left_out
        notes += told
    return tuple(examples), tuple(skipped), tuple(map(one_line, notes))


def encode_rows(
    rows: Sequence[Any], config: DataConfig, tokenizer: PreTrainedTokenizerBase, day: date | None
) -> tuple[tuple[Example, ...], tuple[Skipped, ...], tuple[str, ...]]:
    """Encodes rows that are in memory; otherwise as `read_examples`."""
    source = config.source("rows", "")
    numbered = [SourceRow(row, number, source.path) for number, row in enumerate(rows, start=1)]
    examples, skipped, notes = _encode(config, source, 0, numbered, Encoder.of(config, tokenizer, day))
    return tuple(examples), tuple(skipped), tuple(map(one_line, notes))


def _rows(source: DataSource) -> list[SourceRow]:
    rows = list(read_rows(source.path, split=source.split or "", config=source.hub_config, revision=source.revision))
    if not rows:
        raise UserError(f"{source.path}: no usable row among 0")
    return rows


def _encode(
    config: DataConfig, source: DataSource, origin: int, rows: Sequence[SourceRow], encoder: Encoder
) -> tuple[list[Example], list[Skipped], list[str]]:
    layout, tally = _layout(source), Tally()
    examples: list[Example] = []
    skipped: list[Skipped] = []
    for row in rows:
        try:
            examples.append(_example(row, config, encoder, layout, tally, origin))
        except RowError as error:
            skipped.append(Skipped(row.source, row.line, str(error), not isinstance(error, _TooLong)))
            if config.bad_lines == "error":
                raise UserError(str(skipped[-1])) from error
        except Exceeded as error:
            raise UserError(f"{row.source}:{row.line}: {error}") from error
        except TemplateError as error:
            raise UserError(
                f"{row.source}:{row.line}: {error}, expected one that only appends, so that completions can be told "
                "from prompts; train_on=all needs no such template"
            ) from error
    _check_enough(source.path, examples, skipped)
    notes = tally.lines(source.path, layout.columns)
    if len(skipped) > _WORTH_A_WARNING * len(rows):
        many = f"{len(skipped):,} of {len(rows):,} rows are skipped, more than a tenth"
        notes = [f"{source.path}: WARNING: {many}", *notes]
    return examples, skipped, notes


def _layout(source: DataSource) -> RowFormat:
    names = {} if source.columns is None else source.columns.model_dump(exclude_none=True)
    turns = TurnReader(names.pop("role", None), names.pop("content", None), source.roles or {})
    return RowFormat(source.format or "auto", names, turns)


class _TooLong(RowError):
    """A row is longer than what is asked for."""


def _example(
    row: SourceRow, config: DataConfig, encoder: Encoder, layout: RowFormat, tally: Tally, origin: int
) -> Example:
    if row.problem is not None:
        raise RowError(row.problem)
    reading = read_row(row.content, layout, template=encoder.template)
    example = _encoded(reading.document, row, config, encoder)
    documents = [reading.document]
    if reading.rejected is not None:
        example = _pair(example, reading.rejected, row, config, encoder)
        documents.append(reading.rejected)
    unwritten = [f"{what} is not written by the chat template" for one in documents for what in encoder.unwritten(one)]
    chats = [one for one in documents if isinstance(one, Chat)]
    if config.train_on == "all" and not all(turn.learnt for chat in chats for turn in chat.messages):
        unwritten.append("turns that are marked as not to be learnt are learnt, as train_on: all says")
    tally.count(row.content, reading.unused, tuple(dict.fromkeys((*reading.notes, *unwritten))))
    return replace(example, origin=origin, format=reading.format, desirable=reading.desirable)


def _pair(chosen: Example, rejected: Document, row: SourceRow, config: DataConfig, encoder: Encoder) -> Example:
    """Returns a pair of rows, of which neither is cut to nothing and both say something else."""
    try:
        other = _encoded(rejected, row, config, encoder)
    except _TooLong as error:
        raise _TooLong(f"the rejected answer: {error}") from error
    except RowError as error:
        raise RowError(f"the rejected answer: {error}") from error
    if np.array_equal(chosen.tokens, other.tokens):
        cut = f" once cut to max_length={config.max_length}" if chosen.truncated or other.truncated else " as tokens"
        raise RowError(f"chosen and rejected are the same{cut}")
    return replace(chosen, rejected=other)


def _encoded(document: Document, row: SourceRow, config: DataConfig, encoder: Encoder) -> Example:
    tokens, targets, ends = encoder.encode(document)
    longer = len(tokens) > config.max_length
    if longer:
        found = f"{len(tokens)} tokens, expected at most max_length={config.max_length}"
        if config.truncation == "error":
            raise UserError(f"{row.source}:{row.line}: {found}; raise it, or set truncation to truncate or drop")
        if config.truncation == "drop":
            raise _TooLong(found)
        tokens, targets = tokens[: config.max_length], targets[: config.max_length]
    if not targets.any():
        raise RowError(f"no token to learn within max_length={config.max_length}" if longer else "no token to learn")
    kept = [place for place in ends if place < len(tokens)]
    ended = bool(ends) and kept == list(ends)
    closing = tuple(int(tokens[one]) for one in kept)
    return Example(tokens, targets, row.line, row.source, document, longer, closing, ended)


def _check_enough(name: str, examples: Sequence[Example], skipped: Sequence[Skipped]) -> None:
    rows = len(examples) + len(skipped)
    unusable = [one for one in skipped if one.unusable]
    if not examples:
        why = f"; the first: {skipped[0]}" if skipped else ""
        raise UserError(f"{name}: no usable row among {rows}{why}")
    if len(unusable) > _TOO_MANY * rows:
        first = "; ".join(map(str, unusable[:3]))
        raise UserError(
            f"{name}: {len(unusable):,} of {rows:,} rows cannot be used, expected at most half; the first: {first}"
        )
