"""One reader for the parts of a GGUF file: config, weights and tokenizer."""

import functools
import struct
from pathlib import Path

import gguf

from harness.errors import UserError


def open_gguf(path: str | Path) -> gguf.GGUFReader:
    """Opens a GGUF file, memory-mapped; the last one stays open, as reading its metadata takes seconds.

    Raises:
        UserError: The file is missing, damaged, or no GGUF file.
    """
    try:
        stat = Path(path).stat()
        return _open(Path(path).resolve(), stat.st_mtime_ns, stat.st_size)
    except (ValueError, IndexError, KeyError, TypeError, struct.error, OSError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read as GGUF ({reason}), expected an undamaged .gguf file") from error


@functools.lru_cache(maxsize=1)
def _open(path: Path, modified_ns: int, size_bytes: int) -> gguf.GGUFReader:
    return gguf.GGUFReader(path)
