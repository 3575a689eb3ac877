"""One reader for the parts of a GGUF file: config, weights and tokenizer."""

import contextlib
import functools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf

from backbone.gguf_reader import BoundedReader
from harness.errors import UserError
from harness.foreign_files import check_regular


def open_gguf(path: str | Path) -> gguf.GGUFReader:
    """Opens a GGUF file, memory-mapped; the last one stays open, as reading its metadata takes seconds.

    Raises:
        UserError: The file is missing, damaged, or no GGUF file.
    """
    check_regular(Path(path))
    with _readable(path):
        stat = Path(path).stat()
        return _open(Path(path).resolve(), stat.st_mtime_ns, stat.st_size)


def read_metadata(path: str | Path, *prefixes: str) -> dict[str, Any]:
    """Returns the metadata whose keys begin with one of `prefixes`, as plain values.

    Raises:
        UserError: As for `open_gguf`.
    """
    fields = open_gguf(path).fields
    with _readable(path):
        return {key: field.contents() for key, field in fields.items() if key.startswith(prefixes)}


@functools.lru_cache(maxsize=1)
def _open(path: Path, modified_ns: int, size_bytes: int) -> gguf.GGUFReader:
    return BoundedReader(path)


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, IndexError, KeyError, TypeError, struct.error, OSError, OverflowError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read as GGUF ({reason}), expected an undamaged .gguf file") from error
