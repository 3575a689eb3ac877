"""Files that others wrote, read within bounds: regular ones only, no larger than such a file can be."""

import json
import stat
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import user_errors

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
    content = read_bytes(path, most_bytes)
    try:
        found = json.loads(content.decode("utf-8"))
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
