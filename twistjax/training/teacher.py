"""What a teacher expects at every token of the training rows: computed once before training, then read from disk.

A token of a row takes 256 bytes, 384 where the vocabulary has more than 2¹⁶ tokens.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float16, Int, Int64, Shaped
from transformers import PreTrainedTokenizerBase

from jaxlm.data.text_rows import TextRows
from jaxlm.families.config import ModelConfig
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import load_model, read_model_config
from jaxlm.models.functional import Functional, weights_by_path
from jaxrun.files.atomic import write_atomic
from jaxrun.files.folders import replace_folder
from jaxrun.files.foreign_files import read_json
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import StopAsked, stop_if
from twistjax.distillation import SoftTargets
from twistjax.training.local_training import TOP, text_likeliest

FOLDER = "teacher"
_FACTS, _TOKENS, _VALUES = "facts.json", "tokens.npy", "log_probabilities.npy"


class TeacherLabels(NamedTuple):
    """A teacher's likeliest tokens, on disk.

    Attributes:
        folder: Where they are.
        vocabulary: Tokens there are.
        place: Where each training row is among those that the run reads.
        tokens: Ids, uint16 or int32.
        log_probabilities: Theirs, float16.
    """

    folder: Path
    vocabulary: int
    place: Int64[np.ndarray, " rows"]
    tokens: Shaped[np.ndarray, "read length top"]
    log_probabilities: Float16[np.ndarray, "read length top"]

    def of(self, rows: Int[np.ndarray, "..."]) -> SoftTargets:
        """Returns what the teacher expects in rows: int32 and float32, [..., length, top], on the host.

        Raises:
            UserError: The files are damaged there.
        """
        at = self.place[rows]
        found: Any = self.tokens[at].astype(np.int32), self.log_probabilities[at].astype(np.float32)
        soft = SoftTargets(*found)
        known = (soft.tokens >= 0) & (soft.tokens < self.vocabulary)
        if not (np.isfinite(soft.log_probabilities) & known).all():
            raise UserError(f"{self.folder}: is damaged, expected what the run wrote; remove it to write it anew")
        return soft


def check_teacher(teacher: str, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    """Refuses a teacher that cannot read the text as the model does. Loads no weights.

    Args:
        teacher: As of `jaxlm.files.weights.load_model`.
        model: The model that learns.
        tokenizer: Its tokenizer.
        length: Tokens of a row.

    Raises:
        UserError: There is no such model; its vocabulary or tokenizer is another, or it reads shorter rows.
    """
    try:
        config, own = read_model_config(teacher), load_tokenizer(teacher)
    except UserError as error:
        raise UserError(f"training.teacher: {error}; or self") from error
    if config.vocab_size != model.vocab_size or own.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"training.teacher: {teacher} has another vocabulary of {config.vocab_size}, expected a teacher of the "
            f"model's own tokenizer, with {model.vocab_size}"
        )
    if config.max_position < length:
        raise UserError(
            f"training.teacher: {teacher} reads {config.max_position} tokens, expected those of a row, {length}"
        )


def has_labels(run_dir: Path) -> bool:
    """Whether a teacher's labels are there, so that the teacher is not needed again."""
    return (run_dir / FOLDER / _FACTS).is_file()


def label_bytes(run_dir: Path, vocabulary: int, read: int, length: int) -> int:
    """Returns the bytes that `label_rows` is going to write for so many rows; none where something is there."""
    if has_labels(run_dir):
        return 0
    tokens, values = _kinds(vocabulary)
    return read * length * min(TOP, vocabulary) * (np.dtype(tokens).itemsize + np.dtype(values).itemsize)


def label_rows(
    run_dir: Path,
    teacher: str,
    train: TextRows,
    read: Int64[np.ndarray, " read"],
    *,
    dtype: DTypeLike,
    rows_at_once: int,
    say: Callable[[str], object] = lambda line: None,
    asked: StopAsked | None = None,
    others: Sequence[Path] = (),
) -> dict[str, Any]:
    """Writes what a teacher expects in training rows to RUN/teacher, unless it is there.

    Args:
        run_dir: The run's folder.
        teacher: As of `jaxlm.files.weights.load_model`.
        train: The training rows.
        read: Those of them that the run reads, ascending.
        dtype: Of the computation.
        rows_at_once: Rows of a batch.
        say: Told what takes long.
        asked: What says that the run is to stop.
        others: Folders of runs, of which one may have the same labels already; the files are then shared.

    Returns:
        What it is of.

    Raises:
        UserError: The teacher cannot be loaded or makes no numbers, or the files cannot be written.
        Stopped: It was asked to stop, and has written nothing.
    """
    facts = {"teacher": teacher, "rows": train.digest, "read": len(read), "dtype": jnp.dtype(dtype).name}
    folder = run_dir / FOLDER
    if has_labels(run_dir) and read_json(folder / _FACTS) == facts:
        return facts
    for other in others:
        if has_labels(other) and read_json(other / FOLDER / _FACTS) == facts:
            with replace_folder(folder) as partial:
                for name in (_TOKENS, _VALUES, _FACTS):
                    _share(other / FOLDER / name, partial / name)
            return facts
    say(f"{teacher} reads the rows")
    config, model = load_model(teacher, dtype=jnp.float32)
    weights, functional = weights_by_path(model, jnp.float32), Functional(config, dtype=dtype)
    labels = jax.jit(lambda weights, tokens: text_likeliest(functional, weights, tokens))
    with replace_folder(folder) as partial:
        shape = (len(read), train.tokens.shape[1], min(TOP, config.vocab_size))
        files = [
            np.lib.format.open_memmap(partial / name, mode="w+", dtype=kind, shape=shape)
            for name, kind in zip((_TOKENS, _VALUES), _kinds(config.vocab_size), strict=True)
        ]
        size = min(rows_at_once, len(read))
        for first in range(0, len(read), size):
            stop_if(asked)
            own = read[first : first + size]
            found = labels(weights, train.tokens[np.resize(own, size)])
            if not np.isfinite(found.log_probabilities).all():
                raise UserError(f"training.teacher: what {teacher} expects is not finite, expected undamaged weights")
            for file, part in zip(files, found, strict=True):
                file[first : first + size] = np.asarray(part)[: len(own)]
        for file in files:
            file.flush()
        write_atomic(partial / _FACTS, json.dumps(facts) + "\n")
    return facts


def open_labels(run_dir: Path, train: TextRows, read: Int64[np.ndarray, " read"], vocabulary: int) -> TeacherLabels:
    """Opens what `label_rows` wrote, whoever did.

    Args:
        run_dir: The run's folder.
        train: The training rows.
        read: Those of them that the run reads, ascending.
        vocabulary: Tokens there are.

    Raises:
        UserError: It is not there, or not as it was written.
    """
    folder = run_dir / FOLDER
    try:
        files = [np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (_TOKENS, _VALUES)]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: cannot be read ({error}), expected what a teacher expects, in an output_dir that all processes "
            "of a run share"
        ) from error
    shape = len(read), train.tokens.shape[1], min(TOP, vocabulary)
    if [(file.shape, file.dtype) for file in files] != [(shape, np.dtype(kind)) for kind in _kinds(vocabulary)]:
        raise UserError(f"{folder}: of other rows than the run's, expected what it wrote; remove it to write it anew")
    place = np.full(len(train.tokens), -1, np.int64)
    place[read] = np.arange(len(read))
    return TeacherLabels(folder, vocabulary, place, *files)


def _share(path: Path, other: Path) -> None:
    """Gives a file, which nobody changes once it is written, a second name, or copies it to another disk."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def _kinds(vocabulary: int) -> tuple[type, type]:
    """Returns the types in which tokens and log probabilities are kept."""
    return np.uint16 if vocabulary <= 2**16 else np.int32, np.float16
