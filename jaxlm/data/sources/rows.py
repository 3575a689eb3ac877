"""Rows out of files and hub data sets. Nothing here executes what it reads."""

import csv
import io
import itertools
import json
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from jaxlm.data.sources.hub import download
from jaxlm.data.sources.inflating import lines, most_bytes, open_data, read_whole
from jaxrun.files.foreign_files import check_regular
from jaxrun.files.home import from_home
from jaxrun.process.errors import UserError, nearest
from jaxrun.terminal.sizes import counted

_PLAIN = (".jsonl", ".json", ".csv", ".tsv", ".txt")
SUFFIXES = (*_PLAIN, *(f"{suffix}.gz" for suffix in _PLAIN), ".parquet")
_EXPECTED = "a .jsonl, .json, .csv, .tsv, .txt (also with .gz) or .parquet file"
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".npy", ".npz")
_ROWS_AT_ONCE = 256
MOST_FILES = 100_000
"""Data files of a folder."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class SourceRow:
    """One row of a source.

    Attributes:
        content: The decoded row; None where `problem` says why it could not be decoded.
        line: Line of the file, or row of the table, from 1.
        source: File or data set.
        problem: What is wrong with the line, if anything.
    """

    content: Any
    line: int
    source: str
    problem: str | None = None


def read_rows(
    source: str, *, split: str, config: str | None = None, revision: str | None = None
) -> Iterator[SourceRow]:
    """Yields the rows of a file, of the files of a folder in the order of their names, or of a hub data set.

    Args:
        source: A path or a hub id.
        split: Split of a hub data set.
        config: Configuration of a hub data set.
        revision: Revision of a hub data set.

    Raises:
        UserError: There is no such source, it has a format that is not read here, or it is damaged as a whole.
    """
    path = from_home(source)
    if os.path.lexists(path) and not path.is_dir():
        check_regular(path)
        yield from _read_file(path, str(source))
    elif path.is_dir():
        every = (file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        files = sorted(itertools.islice(every, MOST_FILES + 1))
        if len(files) > MOST_FILES:
            raise UserError(
                f"{source}: more than {MOST_FILES:,} data files in this folder, expected fewer, larger ones"
            )
        if not files:
            raise UserError(f"{source}: no data files in this folder, expected {_EXPECTED}")
        for file in files:
            yield from _read_file(file, str(file))
    elif _HUB_ID.fullmatch(source) and not source.endswith((*SUFFIXES, *_PICKLES)) and not source.startswith("."):
        folder, names = download(source, SUFFIXES, split=split, config=config, revision=revision)
        for name in names:
            yield from _read_file(folder / name, f"{source}/{name}")
    else:
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{source}: no such file{nearest(path.name, beside)}, expected {_EXPECTED} or a hub id")


def files_left_out(source: str) -> list[str]:
    """Returns the names in a folder that `read_rows` does not read; none where the source is no folder."""
    path = from_home(source)
    if not path.is_dir():
        return []
    others = (entry for entry in path.iterdir() if entry.is_dir() or not entry.name.endswith(SUFFIXES))
    return sorted(entry.name + "/" * entry.is_dir() for entry in others if not entry.name.startswith("."))


def _read_file(path: Path, source: str) -> Iterator[SourceRow]:
    name = path.name
    if name.endswith(_PICKLES):
        raise UserError(f"{source}: pickled data can run code and is not read, expected {_EXPECTED}")
    if not name.endswith(SUFFIXES):
        raise UserError(f"{source}: not a format that is read here, expected {_EXPECTED}")
    try:
        if name.endswith(".parquet"):
            yield from _read_parquet(path, source)
        elif name.endswith((".json", ".json.gz")):
            yield from _read_json(path, source)
        elif name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz")):
            yield from _read_table(path, source, "\t" if ".tsv" in path.suffixes else ",")
        elif name.endswith((".txt", ".txt.gz")):
            yield _read_text(path, source)
        else:
            yield from _read_jsonl(path, source)
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{source}: cannot be read ({reason}), expected an undamaged file") from error


def _read_text(path: Path, source: str) -> SourceRow:
    """Reads a file of running text as one row."""
    with open_data(path) as file:
        raw = read_whole(file, source).removeprefix(b"\xef\xbb\xbf")
    try:
        return SourceRow({"text": raw.decode("utf-8")}, 1, source)
    except UnicodeDecodeError as error:
        return SourceRow(None, 1 + raw[: error.start].count(b"\n"), source, f"not UTF-8 text (byte {error.start + 1})")


def _read_table(path: Path, source: str, delimiter: str) -> Iterator[SourceRow]:
    """Reads rows below a line of names; cells may hold line breaks and the delimiter between quotes."""
    with open_data(path) as file, io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
        csv.field_size_limit(sys.maxsize)
        cells = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            names = next(cells, [])
        except csv.Error as error:
            raise UserError(
                f"{source}:1: not a line of names ({error}), expected one, separated as the rows"
            ) from error
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{source}:1: two columns are named '{twice[0]}', expected one of each name")
        while True:
            line = cells.line_num + 1
            try:
                values = next(cells, None)
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise UserError(
                        f"{source}:{line}: a quote that is never closed, expected one at its end"
                    ) from error
                yield SourceRow(None, line, source, f"not a row of a table ({error})")
                continue
            if values is None:
                return
            if values:
                yield _table_row(names, values, line, source)


def _table_row(names: list[str], values: list[str], line: int, source: str) -> SourceRow:
    if any("\udc80" <= letter <= "\udcff" for value in values for letter in value):
        return SourceRow(None, line, source, "not UTF-8 text")
    if len(values) != len(names):
        return SourceRow(
            None, line, source, f"{counted(len(values), 'cell')}, expected {len(names)} as in the first line"
        )
    return SourceRow(dict(zip(names, values, strict=True)), line, source)


def _read_jsonl(path: Path, source: str) -> Iterator[SourceRow]:
    with open_data(path) as file:
        for line, raw in enumerate(lines(file, source), start=1):
            if line == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield _decode(raw.rstrip(b"\r\n"), line, source)


def _read_json(path: Path, source: str) -> Iterator[SourceRow]:
    """Reads a list of objects; a file of one object a line, however named, is read as what it is."""
    with open_data(path) as file:
        raw = read_whole(file, source).removeprefix(b"\xef\xbb\xbf")
    whole = _decode(raw, 1, source)
    if isinstance(whole.content, list):
        for number, content in enumerate(whole.content, start=1):
            yield SourceRow(content, number, source)
    elif whole.problem is None or b"\n" in raw.strip():
        yield from _read_jsonl(path, source)
    else:
        raise UserError(f"{source}:{whole.line}: {whole.problem}, expected a list of objects")


def _decode(raw: bytes, line: int, source: str) -> SourceRow:
    try:
        return SourceRow(json.loads(raw.decode("utf-8"), object_pairs_hook=_object), line, source)
    except UnicodeDecodeError as error:
        return SourceRow(None, line, source, f"not UTF-8 text (byte {error.start + 1})")
    except json.JSONDecodeError as error:
        return SourceRow(None, line + error.lineno - 1, source, f"not valid JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        return SourceRow(None, line, source, "not usable JSON (nested too deeply)")
    except ValueError as error:
        return SourceRow(None, line, source, f"not usable JSON ({error})")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key '{twice}' is there twice")
    return found


def _read_parquet(path: Path, source: str) -> Iterator[SourceRow]:
    number, left = 0, most_bytes(path)
    with pyarrow.parquet.ParquetFile(path) as table:
        about = table.metadata
        packed = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
        if packed > left or about.num_rows > left:
            raise UserError(
                f"{source}: {about.num_rows:,} rows of {packed:,} bytes in a file of {path.stat().st_size:,}, "
                "expected a file that holds text"
            )
        for batch in (_plain(one, source) for one in table.iter_batches(batch_size=_ROWS_AT_ONCE)):
            left -= batch.nbytes
            if left < 0:
                raise UserError(
                    f"{source}: becomes more than {most_bytes(path):,} bytes, expected a file that holds text"
                )
            for content in _decoded(batch):
                number += 1
                if isinstance(content, str):
                    yield SourceRow(None, number, source, content)
                else:
                    yield SourceRow({name: _without_nulls(value) for name, value in content.items()}, number, source)


def _plain(batch: pyarrow.RecordBatch, source: str) -> pyarrow.RecordBatch:
    """Writes out columns that name each value once, so that what they become is counted."""
    columns = [one.dictionary_decode() if isinstance(one, pyarrow.DictionaryArray) else one for one in batch.columns]
    for name, one in zip(batch.schema.names, columns, strict=True):
        if "dictionary<" in str(one.type):
            raise UserError(f"{source}: column '{name}' is {one.type}, expected values that are written out")
    return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _decoded(batch: pyarrow.RecordBatch) -> list[dict[str, Any] | str]:
    """Returns the rows of a batch, or why one cannot be decoded."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            if isinstance(error, UnicodeDecodeError):
                return [f"not UTF-8 text (byte {error.start + 1} of a cell)"]
            return [f"a cell that cannot be decoded ({error})"]
        half = batch.num_rows // 2
        return _decoded(batch.slice(0, half)) + _decoded(batch.slice(half))


def _without_nulls(value: Any) -> Any:
    """Drops keys that are null within a cell: a column of objects gives each of them the keys of all others."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
