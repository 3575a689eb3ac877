"""Data files as streams of bytes, of which a compressed one may not become without end what it is not."""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from jaxrun.files.foreign_files import check_regular
from jaxrun.process.errors import UserError

FREE_BYTES, MOST_TIMES = 2**28, 250
"""Bytes that any compressed file may become, and beyond that times its own size; text becomes some 10 times."""
WHOLE_BYTES = 2**32
"""Most bytes of a file that is read as a whole, and of a line."""


def most_bytes(path: Path) -> int:
    """Returns how many bytes a compressed file may become.

    Raises:
        UserError: It is no plain file.
    """
    return max(FREE_BYTES, MOST_TIMES * check_regular(path))


def open_data(path: Path) -> IO[bytes]:
    """Opens a plain file, or one that ends in .gz, for reading.

    Raises:
        UserError: It is no plain file; in reading, that it becomes too much.
    """
    most = most_bytes(path)
    if path.suffix != ".gz":
        return path.open("rb")
    return cast(IO[bytes], io.BufferedReader(_Inflated(gzip.open(path, "rb"), path, most), 2**17))


def read_whole(file: IO[bytes], source: str) -> bytes:
    """Returns all of a file.

    Raises:
        UserError: It is larger than a file that is read as a whole may be.
    """
    content = bytearray()
    while part := file.read(2**20):
        content += part
        if len(content) > WHOLE_BYTES:
            raise UserError(f"{source}: more than {WHOLE_BYTES:,} bytes in one piece, expected .jsonl of several lines")
    return bytes(content)


def lines(file: IO[bytes], source: str) -> Iterator[bytes]:
    """Yields the lines of a file.

    Raises:
        UserError: One is longer than a line may be.
    """
    while line := file.readline(WHOLE_BYTES + 1):
        if len(line) > WHOLE_BYTES:
            raise UserError(f"{source}: a line of more than {WHOLE_BYTES:,} bytes, expected shorter ones")
        yield line


class _Inflated(io.RawIOBase):
    """The content of a compressed file, up to so many bytes."""

    def __init__(self, file: gzip.GzipFile, path: Path, most: int) -> None:
        self._file, self._path, self._left = file, path, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._left -= count
        if self._left < 0:
            most = most_bytes(self._path)
            raise UserError(f"{self._path}: becomes more than {most:,} bytes, expected a file that holds text")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
