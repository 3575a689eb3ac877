"""Data that hangs or grows without end when it is read, and templates that do: one line before it does."""

import gzip
import os
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from tokenizer_files import TINY

from jaxlm.data.chat import chat_templates
from jaxlm.data.chat.chat_templates import template_text
from jaxlm.data.sources import inflating, rows
from jaxlm.data.sources.rows import read_rows
from jaxlm.files.weights import load_model
from jaxrun.process.errors import UserError


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        for _ in read_rows(str(path), split="train"):
            pass
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(inflating, "FREE_BYTES", 10_000)
    monkeypatch.setattr(inflating, "MOST_TIMES", 20)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt", "rows.jsonl.gz", "rows.parquet"])
def test_pipes_are_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert refusal(tmp_path / name) == f"{tmp_path / name}: is a pipe, expected a plain file"
    assert "is a pipe" in refusal(tmp_path), "in a folder, too"


def test_devices_sockets_and_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    assert "is a device, expected a plain file" in refusal(tmp_path / "zero.jsonl")
    (tmp_path / "circle.jsonl").symlink_to("circle.jsonl")
    assert "links that lead in a circle" in refusal(tmp_path / "circle.jsonl")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "s.txt"))
        assert "is a socket, expected a plain file" in refusal(tmp_path / "s.txt")


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz", "rows.csv.gz", "rows.txt.gz"])
def test_a_compressed_file_that_becomes_too_much_is_refused(tmp_path, small, name):
    (tmp_path / name).write_bytes(gzip.compress(b'"a"\n' * 100_000))
    assert f"{name}: becomes more than" in refusal(tmp_path / name)


def test_a_compressed_file_of_text_is_read(tmp_path, small):
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 100))
    assert len(list(read_rows(str(tmp_path / "rows.jsonl.gz"), split="train"))) == 100


@pytest.mark.parametrize(
    "columns",
    [
        {"text": ["a" * 1000] * 1000},
        {"text": pa.array(["a" * 1000] * 1000).dictionary_encode()},
        {"text": pa.nulls(1_000_000)},
    ],
    ids=["packed", "repeated", "nulls"],
)
def test_a_table_that_becomes_too_much_is_refused(tmp_path, small, columns):
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", compression="zstd")
    assert "expected a file that holds text" in refusal(tmp_path / "rows.parquet")


def test_a_file_or_line_that_memory_cannot_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(inflating, "WHOLE_BYTES", 1000)
    for name in ("rows.json", "rows.txt"):
        (tmp_path / name).write_bytes(b" " * 1001)
        assert "more than 1,000 bytes in one piece" in refusal(tmp_path / name)
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "a"}\n' * 900 + b" " * 1001)
    assert "a line of more than 1,000 bytes" in refusal(tmp_path / "rows.jsonl")


def test_a_folder_of_more_files_than_are_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MOST_FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}.jsonl").touch()
    assert "more than 3 data files in this folder" in refusal(tmp_path)


def test_a_template_that_is_no_plain_file_or_too_large_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jinja")
    with pytest.raises(UserError, match=r"^chat_template: .*pipe\.jinja: is a pipe"):
        template_text(str(tmp_path / "pipe.jinja"))
    (tmp_path / "long.jinja").write_text("a" * (chat_templates.LONGEST + 1))
    with pytest.raises(
        UserError, match=r"^chat_template: .*long\.jinja: has 1,048,577 bytes, expected at most 1,048,576"
    ):
        template_text(str(tmp_path / "long.jinja"))


def test_weights_that_lead_to_a_device_are_refused(tmp_path):
    (tmp_path / "config.json").write_bytes((TINY / "config.json").read_bytes())
    save_file({}, tmp_path / "other.safetensors")
    index = '{"weight_map": {"model.embed_tokens.weight": "part.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    os.mkfifo(tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"part\.safetensors"):
        load_model(tmp_path, dtype="float32")


@pytest.mark.parametrize(
    "cell",
    [
        pa.array([2**31 - 1], pa.date32()),
        pa.array([2**60], pa.timestamp("us")),
        pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
    ],
    ids=lambda cell: str(cell.type),
)
def test_a_cell_that_python_has_no_value_for_is_a_bad_row(tmp_path, cell):
    pq.write_table(pa.table({"text": ["a"], "more": cell}), tmp_path / "rows.parquet")
    (row,) = read_rows(str(tmp_path / "rows.parquet"), split="train")
    assert row.problem is not None and row.problem.startswith("a cell that cannot be decoded")
