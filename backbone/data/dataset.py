"""The rows of one task, ready to train on."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date

import numpy as np
from transformers import PreTrainedTokenizerBase

from backbone.data.config import DataConfig
from backbone.data.documents import Chat, RowError
from backbone.data.encoding import Encoder, TemplateError
from backbone.data.examples import Example
from backbone.data.formats import Layout, read_row
from backbone.data.order import order
from backbone.data.sources import Row, read_rows
from backbone.data.tally import Tally
from harness.errors import UserError

# Which rows are chosen or split off never depends on a run's seed, so that all runs share one validation set.
CHOICE_SEED = 0x5EED
_DEFAULT_FRACTION = 0.1
_WORTH_A_WARNING, _TOO_MANY = 0.1, 0.5
"""Shares of rows that cannot be used: above the one a run is warned, above the other it is not begun."""


@dataclass(frozen=True)
class Skipped:
    """A row that is left out, and why.

    Attributes:
        source: File or data set.
        line: Line of the file, or row of the table, from 1.
        reason: Why.
        unusable: False where the row is fine and only longer than what is asked for.
    """

    source: str
    line: int
    reason: str
    unusable: bool = True

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """Examples in the order of their files.

    Attributes:
        name: Where they come from.
        examples: The rows.
        skipped: Rows of the same source that are left out.
        notes: Lines about what of the rows is not used, and which of them are there twice.
        digest: SHA-256 over all tokens and targets, as hex; the same rows give the same digest on every machine.
    """

    name: str
    examples: tuple[Example, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(len(example.tokens).to_bytes(8, "little"))
            digest.update(example.tokens.astype("<i4").tobytes())
            digest.update(example.targets.astype(np.uint8).tobytes())
        object.__setattr__(self, "digest", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def tokens(self) -> int:
        """Tokens in all examples."""
        return sum(len(example.tokens) for example in self.examples)

    @property
    def target_tokens(self) -> int:
        """Tokens that the loss counts."""
        return sum(int(example.targets.sum()) for example in self.examples)

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end what is learnt, the most frequent first."""
        found = Counter(token for example in self.examples for token in example.ends)
        return tuple(sorted(found, key=lambda token: (-found[token], token)))

    @property
    def longest(self) -> int:
        """Tokens in the longest example."""
        return max((len(example.tokens) for example in self.examples), default=0)

    def summary(self, shown: int = 3) -> list[str]:
        """Returns lines for a person: sizes, what was cut, the first skipped rows by name, and what is not used."""
        lines = [
            f"{self.name}: {len(self):,} rows, {self.tokens:,} tokens ({self.target_tokens:,} targets), "
            f"longest {self.longest}"
        ]
        truncated = sum(example.truncated for example in self.examples)
        if truncated:
            lines.append(f"{self.name}: {truncated:,} rows cut to {self.longest} tokens")
        endless = sum(not example.ended for example in self.examples)
        if endless:
            why = "cut before it" if truncated >= endless else "no token ends them"
            lines.append(f"{self.name}: {endless:,} rows learn no end ({why}): nothing they teach stops generation")
        if self.skipped:
            lines.append(f"{self.name}: {len(self.skipped):,} rows skipped")
            lines += [f"  {skipped}" for skipped in self.skipped[:shown]]
            if len(self.skipped) > shown:
                lines.append(f"  and {len(self.skipped) - shown:,} more")
        return [*lines, *self.notes]


def load_datasets(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, day: date | None = None
) -> tuple[Dataset, Dataset]:
    """Reads, encodes and splits the rows of one task.

    Args:
        config: Where the rows are and how to read them.
        tokenizer: The base model's.
        day: What the chat template takes for today; None is today.

    Returns:
        Training and validation examples; no row is in both.

    Raises:
        UserError: A source cannot be read, has no usable row, or has a bad one where bad rows are errors.
    """
    train = read_source(config, config.train, config.train_split, tokenizer, most=config.max_samples, day=day)
    if config.validation is None:
        train, validation = _split(train, config)
    else:
        validation = load_validation(config, tokenizer, day)
    return _tell_twins(train, validation)


def load_validation(config: DataConfig, tokenizer: PreTrainedTokenizerBase, day: date | None = None) -> Dataset:
    """Reads the validation rows alone, the same ones as `load_datasets`.

    Raises:
        UserError: As `load_datasets`.
    """
    if config.validation is None:
        return load_datasets(config, tokenizer, day)[1]
    split, most = config.validation_split, config.validation_samples
    return read_source(config, config.validation, split, tokenizer, most=most, day=day)


def read_source(
    config: DataConfig,
    source: str,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    most: int | None = None,
    day: date | None = None,
) -> Dataset:
    """Reads and encodes the rows of one source.

    Args:
        config: How to read them.
        source: File, folder or hub id.
        split: Split of a hub data set.
        tokenizer: The base model's.
        most: Use at most this many rows, a fixed random choice.
        day: What the chat template takes for today; None is today.

    Raises:
        UserError: As `load_datasets`.
    """
    rows = list(read_rows(source, split=split, config=config.hub_config, revision=config.revision))
    return _encode(source, _choose(rows, most), config, tokenizer, day)


def _encode(
    name: str, rows: Sequence[Row], config: DataConfig, tokenizer: PreTrainedTokenizerBase, day: date | None
) -> Dataset:
    encoder = Encoder.of(config, tokenizer, day)
    examples: list[Example] = []
    skipped: list[Skipped] = []
    tally = Tally()
    for row in rows:
        try:
            examples.append(_example(row, config, encoder, tally))
        except RowError as error:
            skipped.append(Skipped(row.source, row.line, str(error), not isinstance(error, _TooLong)))
            if config.bad_lines == "error":
                raise UserError(str(skipped[-1])) from error
        except TemplateError as error:
            raise UserError(
                f"{row.source}:{row.line}: {error}, expected one that only appends, so that completions can be told "
                "from prompts; train_on=all needs no such template"
            ) from error
    _check_enough(name, examples, skipped)
    notes = tally.lines(name)
    if len(skipped) > _WORTH_A_WARNING * len(rows):
        notes = (f"{name}: WARNING: {len(skipped):,} of {len(rows):,} rows are skipped, more than a tenth", *notes)
    return Dataset(name, tuple(examples), tuple(skipped), notes)


class _TooLong(RowError):
    """A row is longer than what is asked for."""


def _example(row: Row, config: DataConfig, encoder: Encoder, tally: Tally) -> Example:
    if row.problem is not None:
        raise RowError(row.problem)
    reading = read_row(row.content, Layout(config.format), template=encoder.template)
    document = reading.document
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
    unwritten = [f"{what} is not written by the chat template" for what in encoder.unwritten(document)]
    if config.train_on == "all" and isinstance(document, Chat) and not all(turn.learnt for turn in document.messages):
        unwritten.append("turns that are marked as not to be learnt are learnt, as train_on: all says")
    tally.count(reading.unused, (*reading.notes, *unwritten))
    kept = [place for place in ends if place < len(tokens)]
    ended = bool(ends) and kept == list(ends)
    return Example(
        tokens, targets, row.line, row.source, document, longer, tuple(int(tokens[one]) for one in kept), ended
    )


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


def _choose(rows: list[Row], most: int | None) -> list[Row]:
    if most is None or most >= len(rows):
        return rows
    return [rows[index] for index in sorted(order(len(rows), CHOICE_SEED, 0)[:most])]


def _tell_twins(train: Dataset, validation: Dataset) -> tuple[Dataset, Dataset]:
    """Adds lines on rows that are there again, token by token: among the training rows, and among both."""
    seen = {_key(example) for example in train.examples}
    again = len(train) - len(seen)
    shared = sum(_key(example) in seen for example in validation.examples)
    if again:
        train = replace(
            train,
            notes=(
                *train.notes,
                f"{train.name}: {again:,} row{'s are' if again > 1 else ' is'} the same as an earlier one",
            ),
        )
    if shared:
        note = f"{validation.name}: {shared:,} of {len(validation):,} rows are training rows, too"
        validation = replace(validation, notes=(*validation.notes, note))
    return train, validation


def _key(example: Example) -> bytes:
    return hashlib.sha256(example.tokens.tobytes() + example.targets.tobytes()).digest()


def _split(data: Dataset, config: DataConfig) -> tuple[Dataset, Dataset]:
    n = len(data)
    wanted = config.validation_samples
    if wanted is None:
        wanted = max(1, round(n * (config.validation_fraction or _DEFAULT_FRACTION)))
    if wanted >= n:
        raise UserError(
            f"{config.train}: {n} usable rows, {wanted} of them for validation, expected at least one to train on; "
            "give more rows or a validation file"
        )
    chosen = set(order(n, CHOICE_SEED, 1)[:wanted].tolist())
    kept = tuple(example for index, example in enumerate(data.examples) if index not in chosen)
    held_out = tuple(example for index, example in enumerate(data.examples) if index in chosen)
    return Dataset(data.name, kept, data.skipped, data.notes), Dataset(f"{data.name} (split off)", held_out)
