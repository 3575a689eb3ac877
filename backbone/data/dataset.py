"""The rows of one task, ready to train on."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
from transformers import PreTrainedTokenizerBase

from backbone.data.config import DataConfig
from backbone.data.encoding import Encoder, TemplateError
from backbone.data.examples import Example
from backbone.data.formats import RowError, read_document
from backbone.data.order import order
from backbone.data.sources import Row, read_rows
from harness.errors import UserError

# Which rows are chosen or split off never depends on a run's seed, so that all runs share one validation set.
CHOICE_SEED = 0x5EED
_DEFAULT_FRACTION = 0.1


@dataclass(frozen=True)
class Skipped:
    """A row that is left out, and why."""

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """Examples in the order of their files.

    Attributes:
        name: Where they come from.
        examples: The rows.
        skipped: Rows of the same source that are left out.
        digest: SHA-256 over all tokens and targets, as hex; the same rows give the same digest on every machine.
    """

    name: str
    examples: tuple[Example, ...]
    skipped: tuple[Skipped, ...] = ()
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
        """Returns lines for a person: the sizes, what was cut, and the first skipped rows by name."""
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
        return lines


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
        return _split(train, config)
    return train, load_validation(config, tokenizer, day)


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
    for row in rows:
        try:
            examples.append(_example(row, config, encoder))
        except RowError as error:
            skipped.append(Skipped(row.source, row.line, str(error)))
            if config.bad_lines == "error":
                raise UserError(str(skipped[-1])) from error
        except TemplateError as error:
            raise UserError(
                f"{row.source}:{row.line}: {error}, expected one that only appends, so that completions can be told "
                "from prompts; train_on=all needs no such template"
            ) from error
    if not examples:
        why = f"; the first: {skipped[0]}" if skipped else ""
        raise UserError(f"{name}: no usable row among {len(rows)}{why}")
    return Dataset(name, tuple(examples), tuple(skipped))


def _example(row: Row, config: DataConfig, encoder: Encoder) -> Example:
    if row.problem is not None:
        raise RowError(row.problem)
    document = read_document(row.content, config.format, template=encoder.template)
    tokens, targets, ends = encoder.encode(document)
    longer = len(tokens) > config.max_length
    if longer:
        found = f"{len(tokens)} tokens, expected at most max_length={config.max_length}"
        if config.truncation == "error":
            raise UserError(f"{row.source}:{row.line}: {found}; raise it, or set truncation to truncate or drop")
        if config.truncation == "drop":
            raise RowError(found)
        tokens, targets = tokens[: config.max_length], targets[: config.max_length]
    if not targets.any():
        raise RowError(f"no token to learn within max_length={config.max_length}" if longer else "no token to learn")
    kept = [place for place in ends if place < len(tokens)]
    ended = bool(ends) and kept == list(ends)
    return Example(
        tokens, targets, row.line, row.source, document, longer, tuple(int(tokens[one]) for one in kept), ended
    )


def _choose(rows: list[Row], most: int | None) -> list[Row]:
    if most is None or most >= len(rows):
        return rows
    return [rows[index] for index in sorted(order(len(rows), CHOICE_SEED, 0)[:most])]


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
    return Dataset(data.name, kept, data.skipped), Dataset(f"{data.name} (split off)", held_out)
