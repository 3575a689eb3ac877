"""Running text in rows of one length, as language models are pre-trained: documents joined, then cut."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
from jaxtyping import Bool, Int32
from transformers import PreTrainedTokenizerBase

from backbone.data.config import DataConfig
from backbone.data.dataset import CHOICE_SEED, Dataset, read_source
from backbone.data.order import order
from harness.errors import UserError

_DEFAULT_FRACTION = 0.1


@dataclass(frozen=True, eq=False)
class TextRows:
    """Rows of equal length.

    Attributes:
        name: Where they come from.
        tokens: int32.
        targets: True where the loss counts the prediction of this token from those before it; never a row's first.
        digest: SHA-256 over both, as hex.
    """

    name: str
    tokens: Int32[np.ndarray, "rows length"]
    targets: Bool[np.ndarray, "rows length"]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(repr(self.tokens.shape).encode())
        digest.update(self.tokens.astype("<i4").tobytes())
        digest.update(self.targets.tobytes())
        object.__setattr__(self, "digest", digest.hexdigest())

    def summary(self) -> list[str]:
        """Returns a line for a person."""
        rows, length = self.tokens.shape
        return [f"{self.name}: {rows:,} rows of {length} tokens ({int(self.targets.sum()):,} targets)"]


def read_text(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, day: date | None = None
) -> tuple[TextRows, TextRows]:
    """Reads, encodes, joins and cuts training and validation text; no row is in both.

    Where there is no validation source, whole rows are split off. `max_samples` and `validation_samples` count rows;
    `packing` and `truncation` have no meaning here. `day` is what a chat template takes for today; None is today.

    Raises:
        UserError: As `load_datasets`, or a source that does not fill a row.
    """
    text = read_source(_whole(config), config.train, config.train_split, tokenizer, day=day)
    train = _choose(_cut(text, config.max_length), config.max_samples)
    if config.validation is None:
        return _split(train, config)
    return train, read_validation_text(config, tokenizer, day)


def read_validation_text(config: DataConfig, tokenizer: PreTrainedTokenizerBase, day: date | None = None) -> TextRows:
    """Reads the validation rows alone, the same ones as `read_text`.

    Raises:
        UserError: As `read_text`.
    """
    if config.validation is None:
        return read_text(config, tokenizer, day)[1]
    data = read_source(_whole(config), config.validation, config.validation_split, tokenizer, day=day)
    return _choose(_cut(data, config.max_length), config.validation_samples)


def _whole(config: DataConfig) -> DataConfig:
    """The same, but for documents, which are not cut before they are joined."""
    return config.model_copy(update={"max_length": 2**62})


def _cut(data: Dataset, length: int) -> TextRows:
    tokens = np.concatenate([example.tokens for example in data.examples])
    targets = np.concatenate([example.targets for example in data.examples])
    rows = len(tokens) // length
    if not rows:
        raise UserError(f"{data.name}: {len(tokens):,} tokens, expected at least a row of max_length={length}")
    tokens, targets = (part[: rows * length].reshape(rows, length) for part in (tokens, targets))
    targets = targets.copy()
    targets[:, 0] = False  # nothing comes before it in its row
    return TextRows(data.name, np.ascontiguousarray(tokens), targets)


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
            f"{config.train}: {count} rows of {rows.tokens.shape[1]} tokens, {wanted} of them for validation, "
            "expected at least one to train on; give more text, a smaller max_length or a validation file"
        )
    mixed = order(count, CHOICE_SEED, 1)
    kept, held_out = np.sort(mixed[wanted:]), np.sort(mixed[:wanted])
    return _take(rows, rows.name, kept), _take(rows, f"{rows.name} (split off)", held_out)


def _take(rows: TextRows, name: str, which: Sequence[int] | np.ndarray) -> TextRows:
    return TextRows(name, rows.tokens[which], rows.targets[which])
