"""Files that others wrote, read within bounds: regular ones only, no larger than such a file can be."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from jaxrun.files.atomic import user_errors
from jaxrun.process.errors import UserError

JSON_BYTES = 64 * 2**20
"""Most bytes of a JSON file that is read as a whole."""


def check_regular(path: Path) -> int:
    """Refuses what is no plain file, such as a pipe or a device, which may have no end; returns its size in bytes.

    Raises:
        UserError: It is, or it is missing or may not be looked at.
    """
    try:
        with user_errors(path):
            found = path.stat()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: is {_kind(found.st_mode)}, expected a plain file")
    return found.st_size


def open_plain(path: Path) -> int:
    """Opens a plain file to read it and returns its descriptor; neither follows a link nor waits for a pipe.

    Raises:
        UserError: It is a link or no plain file, or may not be read.
        FileNotFoundError: It is missing.
    """
    with user_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise UserError(f"{path}: is {_kind(mode)}, expected a plain file")
    return descriptor


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """Returns the whole of a file.

    Raises:
        UserError: It is no plain file, larger than `most_bytes`, or cannot be read.
    """
    size = check_regular(path)
    with user_errors(path), path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise UserError(f"{path}: has {max(size, len(content)):,} bytes, expected at most {most_bytes:,}")
    return content


def read_json(path: Path, most_bytes: int = JSON_BYTES) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        UserError: As `read_bytes`, or it holds no JSON object.
    """
    return parse_json(read_bytes(path, most_bytes), str(path))


def parse_json(content: bytes, path: str) -> dict[str, Any]:
    """Returns the JSON object that `path` holds.

    Raises:
        UserError: It holds none.
    """
    try:
        found = json.loads(content.decode("utf-8"))
        if b"\\u" in content:
            json.dumps(found, ensure_ascii=False).encode("utf-8")  # halves of surrogate pairs are no text
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({_first_line(error)}), expected an object") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, expected a JSON object")
    return found


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
