"""One reader for the parts of a GGUF file: config, weights and tokenizer."""

import contextlib
import functools
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from jaxlm.files.gguf.reader import BoundedReader, UnknownKind
from jaxrun.files.foreign_files import check_regular
from jaxrun.process.errors import UserError


class _Kind(NamedTuple):
    """A type of values: its name, and whether a value is of it."""

    name: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _all(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


_KINDS = {
    (".tokens", ".merges"): _Kind("a list of texts", _all(lambda value: isinstance(value, str))),
    (".token_type",): _Kind("a list of whole numbers", _all(_is_whole)),
    (".scores",): _Kind("a list of finite numbers", _all(_is_number)),
    ("_token_id", "split.count", "split.no", "split.tensors.count"): _Kind("a whole number", _is_whole),
    (".freq_base", ".freq_base_swa"): _Kind("a finite number above 0", lambda value: _is_number(value) and value > 0),
    (".add_bos_token", ".add_eos_token", ".add_space_prefix"): _Kind(
        "true or false", lambda value: isinstance(value, bool)
    ),
    (".architecture", ".model", ".pre", ".chat_template", ".scaling.type"): _Kind(
        "a text", lambda value: isinstance(value, str)
    ),
}
"""Endings of keys, and the types of their values; counts and widths are checked where a config is made of them."""


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
        UserError: As for `open_gguf`, or a value is of another kind than its key's.
    """
    fields = open_gguf(path).fields
    with _readable(path):
        found = {key: field.contents() for key, field in fields.items() if key.startswith(prefixes)}
    for key, value in found.items():
        kind = next((kind for endings, kind in _KINDS.items() if key.endswith(endings)), None)
        if kind is not None and not kind.holds(value):
            raise UserError(f"{path}: {key} is {value!r:.80}, expected {kind.name}")
    return found


def open_tensors(path: str | Path, split: Mapping[str, Any]) -> dict[str, gguf.ReaderTensor]:
    """Returns the tensors of a file by name, with those of the other parts where it is the first of several.

    Args:
        path: Of the file.
        split: Its metadata that begins with ``split.``.

    Raises:
        UserError: It is not the first part, another is missing, damaged or of another model, or the file is damaged.
    """
    path, count, number = Path(path), split.get("split.count", 1), split.get("split.no", 0)
    found = {tensor.name: tensor for tensor in open_gguf(path).tensors}
    if count <= 1:
        return found
    ending = f"-{number + 1:05}-of-{count:05}.gguf"
    stem = path.name.removesuffix(ending)
    if number != 0 or stem == path.name:
        raise UserError(
            f"{path}: part {number + 1} of {count}, expected the first of them, NAME-00001-of-{count:05}.gguf, "
            "with the others beside it"
        )
    for other in range(1, count):
        part = path.with_name(f"{stem}-{other + 1:05}-of-{count:05}.gguf")
        if not part.is_file():
            raise UserError(f"{part}: no such file, expected part {other + 1} of the {count} of {path.name}")
        check_regular(part)
        with _readable(part):
            reader = BoundedReader(part)
            said = [
                field.contents() if (field := reader.get_field(key)) else None for key in ("split.no", "split.count")
            ]
        again = [tensor.name for tensor in reader.tensors if tensor.name in found]
        if said != [other, count] or again:
            raise UserError(f"{part}: is another model's, expected part {other + 1} of the {count} of {path.name}")
        found |= {tensor.name: tensor for tensor in reader.tensors}
    total = split.get("split.tensors.count", len(found))
    if total != len(found):
        raise UserError(f"{path}: {len(found)} weights in its {count} parts, expected {total}")
    return found


@functools.cache
def readable_kinds() -> tuple[str, ...]:
    """Returns the kinds of numbers that tensors can be stored as and read from."""
    found = []
    for kind in gguf.GGMLQuantizationType:
        with contextlib.suppress(NotImplementedError):
            gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
            found.append(kind.name)
    return tuple(found)


@functools.lru_cache(maxsize=1)
def _open(path: Path, modified_ns: int, size_bytes: int) -> gguf.GGUFReader:
    return BoundedReader(path)


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    try:
        yield
    except UnknownKind as error:
        raise UserError(f"{path}: {error}, expected one of {', '.join(readable_kinds())}") from error
    except (ValueError, IndexError, KeyError, TypeError, struct.error, OSError, OverflowError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read as GGUF ({reason}), expected an undamaged .gguf file") from error
