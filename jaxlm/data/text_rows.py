"""Running text in rows of one length, as language models are pre-trained: documents joined, then cut."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date

import numpy as np
from jaxtyping import Bool, Int32
from transformers import PreTrainedTokenizerBase

from jaxlm.data.batching.order import CHOICE_SEED, order
from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import Dataset, load_datasets, load_validation, read_training
from jaxlm.data.examples import check_samples, unread_labels
from jaxrun.process.errors import UserError
from jaxrun.terminal.sizes import counted

_DEFAULT_FRACTION = 0.1


@dataclass(frozen=True, eq=False)
class TextRows:
    """Rows of equal length.

    Attributes:
        name: Where they come from.
        tokens: int32.
        targets: True where the loss counts the prediction of this token from those before it; never a row's first.
        notes: Lines on rows that were skipped and on what is not used.
        digest: SHA-256 over both, as hex.
    """

    name: str
    tokens: Int32[np.ndarray, "rows length"]
    targets: Bool[np.ndarray, "rows length"]
    notes: tuple[str, ...] = ()
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(repr(self.tokens.shape).encode())
        digest.update(self.tokens.astype("<i4").tobytes())
        digest.update(self.targets.tobytes())
        object.__setattr__(self, "digest", digest.hexdigest())

    def summary(self) -> list[str]:
        """Returns lines for a person."""
        rows, length = self.tokens.shape
        return [
            f"{self.name}: {counted(rows, 'row')} of {length} tokens ({int(self.targets.sum()):,} targets)",
            *self.notes,
        ]


def read_text(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, day: date | None = None
) -> tuple[TextRows, TextRows]:
    """Reads, encodes, joins and cuts training and validation text; no row is in both.

    Where there is no validation source, whole rows are split off. `max_samples` and `validation_samples` count rows;
    `packing` and `truncation` have no meaning here and are refused. `day` is what a chat template takes for today; None
    is today.

    Raises:
        UserError: As `load_datasets`, or a source that does not fill a row.
    """
    train, validation = read_documents(config, tokenizer, day)
    rows = _choose(_cut(train, config.max_length), config.max_samples)
    if validation is None:
        return _split(rows, config)
    return rows, _choose(_cut(validation, config.max_length), config.validation_samples)


def read_documents(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, day: date | None = None
) -> tuple[Dataset, Dataset | None]:
    """Reads and encodes training and validation texts whole; no validation texts where rows are split off for that.

    Raises:
        UserError: As `load_datasets`.
    """
    if config.validation is not None:
        return load_datasets(_whole(config), tokenizer, day)
    if any(source.weight is not None for source in config.train_sources):
        raise UserError("data.train: weights repeat text, expected data.validation beside them to validate on")
    return read_training(_whole(config), tokenizer, day=day), None


def read_validation_text(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> TextRows:
    """Reads the validation rows alone, the same ones as `read_text`.

    Raises:
        UserError: As `read_text`.
    """
    if config.validation is None:
        return read_text(config, tokenizer)[1]
    data = load_validation(_whole(config), tokenizer)
    return _choose(_cut(data, config.max_length), config.validation_samples)


def _whole(config: DataConfig) -> DataConfig:
    """The same, but for documents, which are neither cut nor counted before they are joined."""
    if config.packing or config.truncation != "truncate":
        key = "packing" if config.packing else "truncation"
        raise UserError(f"data.{key}: texts are joined and cut into rows of max_length here, expected it left out")
    if config.tests:
        raise UserError("data.test: no test is measured here, expected data without test rows")
    return config.model_copy(update={"max_length": 2**62, "max_samples": None, "validation_samples": None})


def _cut(data: Dataset, length: int) -> TextRows:
    check_samples(data.examples, pairs=False)
    tokens = np.concatenate([example.tokens for example in data.examples])
    targets = np.concatenate([example.targets for example in data.examples])
    rows = len(tokens) // length
    if not rows:
        raise UserError(f"{data.name}: {len(tokens):,} tokens, expected at least a row of max_length={length}")
    tokens, targets = (part[: rows * length].reshape(rows, length) for part in (tokens, targets))
    targets = targets.copy()
    targets[:, 0] = False  # nothing comes before it in its row
    return TextRows(
        data.name, np.ascontiguousarray(tokens), targets, (*data.summary()[1:], *unread_labels(data.examples))
    )


def _choose(rows: TextRows, most: int | None) -> TextRows:
    if most is None or most >= len(rows.tokens):
        return rows
    return _take(rows, rows.name, np.sort(order(len(rows.tokens), CHOICE_SEED, 0)[:most]))


def _split(rows: TextRows, config: DataConfig) -> tuple[TextRows, TextRows]:
    count = len(rows.tokens)
    wanted = config.validation_samples
    if wanted is None:
        wanted = max(1, round(count * (config.validation_fraction or _DEFAULT_FRACTION)))
    if wanted >= count:
        raise UserError(
            f"{rows.name}: {counted(count, 'row')} of {rows.tokens.shape[1]} tokens, {wanted} of them for validation, "
            "expected at least one to train on; give more text, a smaller max_length or a validation file"
        )
    mixed = order(count, CHOICE_SEED, 1)
    kept, held_out = np.sort(mixed[wanted:]), np.sort(mixed[:wanted])
    return _take(rows, rows.name, kept), replace(_take(rows, f"{rows.name} (split off)", held_out), notes=())


def _take(rows: TextRows, name: str, which: Sequence[int] | np.ndarray) -> TextRows:
    return TextRows(name, rows.tokens[which], rows.targets[which], rows.notes)
