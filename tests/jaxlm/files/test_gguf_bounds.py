"""A GGUF file says no number that it has no room for: one line, before memory or time is spent on it."""

import os
import struct
import time

import pytest

from jaxlm.files.gguf import reader as gguf_reader
from jaxlm.files.gguf.file import open_gguf, read_metadata
from jaxlm.files.gguf.tokenizer import build_tokenizer
from jaxlm.files.weights import load_model
from jaxrun.process.errors import UserError

U8, U32, STRING, LIST = 0, 4, 8, 9
F32 = 0


def text(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value(key, kind, content):
    return text(key) + struct.pack("<I", kind) + content


def many(kind, count, content):
    return struct.pack("<IQ", kind, count) + content


def tensor(name, offset, *shape, kind=F32):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def tokens(*given):
    return value("tokenizer.ggml.tokens", LIST, many(STRING, len(given), b"".join(map(text, given))))


def refused(tmp_path, *, values=(), tensors=(), counts=None, data=b"\0" * 256):
    path = tmp_path / "m.gguf"
    infos, fields = counts or (len(tensors), len(values))
    header = b"GGUF" + struct.pack("<IQQ", 3, infos, fields) + b"".join((*values, *tensors))
    path.write_bytes(header + b"\0" * (-len(header) % 32) + data)
    begun = time.process_time()
    with pytest.raises(UserError, match=r"m\.gguf: cannot be read as GGUF \(.*\), expected an undamaged") as error:
        open_gguf(path)
    assert "\n" not in str(error.value) and time.process_time() - begun < 5
    return str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"counts": (2**63, 0)},
        {"counts": (0, 2**63)},
        {"values": [struct.pack("<Q", 2**62)]},
        {"values": [value("a", STRING, struct.pack("<Q", 10**9))]},
        {"values": [value("a", LIST, many(U8, 2**40, b""))]},
        {"values": [value("a", LIST, many(STRING, 2**40, b""))]},
        {"values": [value("a", LIST, many(LIST, 1, b"") * 3000)]},
        {"tensors": [text("a") + struct.pack("<I", 2**31)]},
        {"tensors": [tensor("a", 0, 2**32, 2**32)]},
        {"tensors": [tensor("a", 0, 2**63, 2)]},
        {"tensors": [tensor("a", 0, 1000)]},
        {"tensors": [tensor("a", 2**63, 4)]},
    ],
)
def test_a_number_larger_than_the_file_is_refused(tmp_path, given):
    refused(tmp_path, **given)


def test_tensors_that_overlap_are_refused_with_both_names(tmp_path):
    said = refused(tmp_path, tensors=[tensor("one", 0, 16), tensor("other", 32, 16)])
    assert "tensors one and other overlap" in said


def test_a_tensor_that_begins_between_two_places_is_refused(tmp_path):
    assert "a multiple of 32" in refused(tmp_path, tensors=[tensor("one", 4, 4)])
    values = [value("general.alignment", U32, struct.pack("<I", 64))]
    assert "a multiple of 64" in refused(tmp_path, values=values, tensors=[tensor("one", 32, 4)])


def test_a_token_of_megabytes_is_refused_before_its_cuts_are_tried(tmp_path):
    assert "a token of 3,000,000 bytes, expected at most 2,048" in refused(
        tmp_path, values=[tokens("a", "b" * 3_000_000)]
    )


def test_a_vocabulary_and_a_header_have_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_reader, "VOCABULARY_BYTES", 100)
    assert "tokens of 120 bytes in all" in refused(tmp_path, values=[tokens("a" * 60, "b" * 60)])
    monkeypatch.setattr(gguf_reader, "MOST_VALUES", 1000)
    assert "more than 1,000 values" in refused(tmp_path, values=[value("a", LIST, many(U8, 2000, bytes(2000)))])


def test_what_is_within_bounds_is_read(tmp_path):
    path = tmp_path / "m.gguf"
    header = b"GGUF" + struct.pack("<IQQ", 3, 2, 1) + tokens("a", "b" * 2048)
    header += tensor("empty", 0, 0) + tensor("one", 0, 4)
    path.write_bytes(header + b"\0" * (-len(header) % 32 + 32))
    assert read_metadata(path, "tokenizer")["tokenizer.ggml.tokens"] == ["a", "b" * 2048]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    for read in (open_gguf, lambda path: load_model(path, dtype="float32")):
        with pytest.raises(UserError, match=r"m\.gguf: is a pipe, expected a plain file"):
            read(tmp_path / "m.gguf")


def test_tokens_that_join_in_millions_of_ways_are_refused_before_memory_is_full():
    lengths = range(1, 1200)
    given = {"tokens": ["a" * length for length in lengths], "scores": [0.0 for _ in lengths], "model": "llama"}
    begun = time.process_time()
    with pytest.raises(UserError, match=r"^m\.gguf: its tokens join in more than [0-9,]+ ways"):
        build_tokenizer({f"tokenizer.ggml.{key}": value for key, value in given.items()}, "m.gguf")
    assert time.process_time() - begun < 5
