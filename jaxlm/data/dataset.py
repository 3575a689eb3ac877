"""The rows of one task, ready to train on."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from jaxlm.data.batching.mixing import repetitions, weighted_counts
from jaxlm.data.batching.order import CHOICE_SEED, order
from jaxlm.data.config import DataConfig, DataSource
from jaxlm.data.examples import Example, Skipped
from jaxlm.data.reading import encode_rows, read_examples
from jaxrun.process.errors import UserError
from jaxrun.terminal.sizes import counted

_DEFAULT_FRACTION = 0.1
_NAMED = 5
"""Rows that a line names."""


@dataclass(frozen=True)
class Dataset:
    """Examples in the order of their files.

    Attributes:
        name: Where they come from.
        examples: The rows.
        skipped: Rows of the same source that are left out.
        notes: Lines about what of the rows is not used, and which of them are there twice.
        digest: SHA-256 over all tokens, targets and labels, as hex; the same on every machine.
    """

    name: str
    examples: tuple[Example, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for example in self.rows:
            digest.update(len(example.tokens).to_bytes(8, "little"))
            digest.update(example.tokens.astype("<i4").tobytes())
            digest.update(example.targets.astype(np.uint8).tobytes())
            if example.desirable is not None:
                digest.update(b"desirable" if example.desirable else b"undesirable")
        object.__setattr__(self, "digest", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def rows(self) -> Iterator[Example]:
        """Its rows: examples, and of each pair first the preferred and then the other answer."""
        return (row for example in self.examples for row in example.rows)

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return sum(len(row.tokens) for row in self.rows)

    @property
    def target_tokens(self) -> int:
        """Tokens that the loss counts."""
        return sum(int(row.targets.sum()) for row in self.rows)

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end what is learnt, the most frequent first."""
        found = Counter(token for example in self.examples for token in example.ends)
        return tuple(sorted(found, key=lambda token: (-found[token], token)))

    @property
    def longest(self) -> int:
        """Tokens in the longest row."""
        return max((len(row.tokens) for row in self.rows), default=0)

    def summary(self, shown: int = 3) -> list[str]:
        """Returns lines for a person: sizes, what was cut, the first skipped rows by name, and what is not used."""
        what = "pair" if any(example.rejected for example in self.examples) else "row"
        lines = [
            f"{self.name}: {counted(len(self), what)}, {self.tokens:,} tokens ({self.target_tokens:,} targets), "
            f"longest {self.longest}"
        ]
        labels = [example.desirable for example in self.examples if example.desirable is not None]
        if labels:
            good, bad = counted(sum(labels), "desirable answer"), counted(len(labels) - sum(labels), "undesirable one")
            lines.append(f"{self.name}: {good}, {bad} ('label')")
        truncated = sum(row.truncated for row in self.rows)
        if truncated:
            lines.append(f"{self.name}: {counted(truncated, 'row')} cut to {self.longest} tokens")
        endless = sum(not row.ended for row in self.rows)
        if endless:
            why = "cut before it" if truncated >= endless else "no token ends them"
            without = f"{counted(endless, 'row')} without an end to learn ({why})"
            lines.append(f"{self.name}: {without}: nothing there stops generation")
        if self.skipped:
            lines.append(f"{self.name}: {counted(len(self.skipped), 'row')} skipped")
            lines += [f"  {skipped}" for skipped in self.skipped[:shown]]
            if len(self.skipped) > shown:
                lines.append(f"  and {len(self.skipped) - shown:,} more")
        return [*lines, *self.notes]


def load_splits(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, day: date | None = None
) -> tuple[Dataset, Dataset, Dataset | None]:
    """Reads, encodes and splits the rows of one task.

    Args:
        config: Where the rows are and how to read them.
        tokenizer: The base model's.
        day: What the chat template takes for today; None is today.

    Returns:
        Training, validation and test examples. What is split off is in one of them only; test examples are in none of
        the others, token by token, wherever they are from. None where no rows are held out for a test.

    Raises:
        UserError: A source cannot be read, has no usable row, or has a bad one where bad rows are errors; or no test
            row is left that is neither a training nor a validation row.
    """
    train = read_training(config, tokenizer, most=config.max_samples, day=day)
    train, split_off, test = _split(train, config)
    validation = split_off or load_validation(config, tokenizer, day)
    if config.test is not None:
        test = _read(config, config.test_sources, tokenizer, config.test_samples, day)
    train, validation = _tell_twins(train, validation)
    unseen = None if test is None else _without_twins(test, train, validation)
    return _weigh(train, config.train_sources), validation, unseen


def load_datasets(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, day: date | None = None
) -> tuple[Dataset, Dataset]:
    """Returns the training and validation examples of `load_splits`; a test source is not read.

    Raises:
        UserError: As `load_splits`.
    """
    unread = {} if config.test is None else {"test": None, "test_samples": None}
    return load_splits(config.model_copy(update=unread), tokenizer, day)[:2]


def load_validation(config: DataConfig, tokenizer: PreTrainedTokenizerBase, day: date | None = None) -> Dataset:
    """Reads the validation rows alone, the same ones as `load_datasets`.

    Raises:
        UserError: As `load_datasets`.
    """
    if config.validation is None:
        return load_datasets(config, tokenizer, day)[1]
    sources = config.validation_sources
    return _weigh(_read(config, sources, tokenizer, config.validation_samples, day), sources)


def dataset_of(
    rows: Sequence[Any], config: DataConfig, tokenizer: PreTrainedTokenizerBase, day: date | None = None
) -> Dataset:
    """Encodes rows that are in memory.

    Args:
        rows: As a .jsonl file has them.
        config: How to write them as tokens.
        tokenizer: The base model's.
        day: What the chat template takes for today; None is today.

    Raises:
        UserError: None can be used, or one cannot where bad rows are errors.
    """
    return Dataset("rows", *encode_rows(rows, config, tokenizer, day))


def read_training(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, most: int | None = None, day: date | None = None
) -> Dataset:
    """Reads and encodes all training rows, each once.

    Raises:
        UserError: As `load_datasets`.
    """
    return _read(config, config.train_sources, tokenizer, most, day)


def _read(
    config: DataConfig,
    sources: Sequence[DataSource],
    tokenizer: PreTrainedTokenizerBase,
    most: int | None,
    day: date | None,
) -> Dataset:
    examples, skipped, notes = read_examples(config, sources, tokenizer, most, day)
    return Dataset(" + ".join(source.path for source in sources), examples, skipped, notes)


def _tell_twins(train: Dataset, validation: Dataset) -> tuple[Dataset, Dataset]:
    """Adds lines on rows that are repeated, token by token: among the training rows, and among both."""
    seen = {_key(example) for example in train.examples}
    again = len(train) - len(seen)
    shared = sum(_key(example) in seen for example in validation.examples)
    if again:
        note = f"{train.name}: {again:,} of {len(train):,} rows are the same as an earlier one"
        train = replace(train, notes=(*train.notes, note))
    if shared:
        note = f"{validation.name}: {shared:,} of {len(validation):,} rows are training rows, too"
        validation = replace(validation, notes=(*validation.notes, note))
    return train, validation


def _without_twins(test: Dataset, train: Dataset, validation: Dataset) -> Dataset:
    """Leaves out test rows that are training or validation rows, token by token, and names them."""
    seen = {_key(example) for rows in (train, validation) for example in rows.examples}
    twins = [example for example in test.examples if _key(example) in seen]
    if not twins:
        return test
    where = ", ".join(f"{example.source}:{example.line}" for example in twins[:_NAMED])
    more = f" and {len(twins) - _NAMED:,} more" if len(twins) > _NAMED else ""
    many = f"{test.name}: {len(twins):,} of {len(test):,} rows are training or validation rows, too ({where}{more})"
    if len(twins) == len(test):
        raise UserError(f"{many}, expected some for the test that are not")
    kept = tuple(example for example in test.examples if _key(example) not in seen)
    return replace(test, examples=kept, notes=(*test.notes, f"{many}, and are left out of the test"))


def _weigh(data: Dataset, sources: Sequence[DataSource]) -> Dataset:
    """Repeats rows until each source has its share of an epoch."""
    if all(source.weight is None for source in sources):
        return data
    weights = [1.0 if source.weight is None else source.weight for source in sources]
    rows = [0] * len(sources)
    for example in data.examples:
        rows[example.origin] += 1
    counts = weighted_counts(rows, weights)
    notes = [
        f"{source.path}: weight {weight:g}: {count:,} of {sum(counts):,} samples of an epoch, from {n:,} rows"
        for source, weight, count, n in zip(sources, weights, counts, rows, strict=True)
    ]
    times = [repetitions(n, count, CHOICE_SEED) for n, count in zip(rows, counts, strict=True)]
    at = [iter(one) for one in times]
    repeated = [example for example in data.examples for _ in range(next(at[example.origin]))]
    return replace(data, examples=tuple(repeated), notes=(*data.notes, *notes))


def _key(example: Example) -> bytes:
    said = b"" if example.desirable is None else str(example.desirable).encode()
    rows = b"".join(row.tokens.tobytes() + row.targets.tobytes() for row in example.rows)
    return hashlib.sha256(rows + said).digest()


def _split(data: Dataset, config: DataConfig) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """Splits off rows for validation and rows for a test; the former are the same, whether or not the latter are."""
    n = len(data)
    held_out = {"validation": 0, "test": 0}
    if config.validation is None:
        share = config.validation_fraction or _DEFAULT_FRACTION
        held_out["validation"] = config.validation_samples or max(1, round(n * share))
    if config.test is None and config.tests:
        held_out["test"] = config.test_samples or max(1, round(n * (config.test_fraction or 0)))
    if sum(held_out.values()) >= n:
        wanted = " and ".join(f"{count} of them for {name}" for name, count in held_out.items() if count)
        sources = " or ".join(f"a {name} file" for name, count in held_out.items() if count)
        raise UserError(
            f"{data.name}: {counted(n, 'usable row')}, {wanted}, expected at least one to train on; give more rows or "
            f"{sources}"
        )
    part = np.zeros(n, np.int8)
    first, second = held_out["validation"], sum(held_out.values())
    places = order(n, CHOICE_SEED, 1)
    part[places[:first]], part[places[first:second]] = 1, 2
    train, *apart = (tuple(one for one, at in zip(data.examples, part, strict=True) if at == own) for own in range(3))
    names = f"{data.name} (split off)", f"{data.name} (split off for the test)"
    validation, test = (Dataset(name, rows) if rows else None for name, rows in zip(names, apart, strict=True))
    return replace(data, examples=train), validation, test
