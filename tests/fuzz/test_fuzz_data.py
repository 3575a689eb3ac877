"""Rows of data: files of every kind, and what their columns hold."""

import gzip

import pyarrow
import pyarrow.parquet
import pytest
from damage import as_json, changed, damaged
from fuzzing import fuzz
from hypothesis import strategies as st
from originals import TINY

from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import load_datasets
from jaxlm.files.tokenizer import load_tokenizer

CALL = {"id": "c1", "type": "function", "function": {"name": "weigh", "arguments": {"item": "brick"}}}
ROWS = [
    {"text": "plain text"},
    {"prompt": "red?", "completion": "stop", "system": "be brief"},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "a", "train": 1},
        ]
    },
    {
        "tools": [CALL["function"]],
        "messages": [
            {"role": "user", "content": "how heavy?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "3 kg"},
            {"role": "assistant", "reasoning_content": "hm", "content": "3 kg."},
        ],
    },
    {
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        "system": "s",
        "chat_template_kwargs": {"x": 1},
    },
    {"instruction": "add", "input": "1 2", "output": "3", "history": [["q", "a"]]},
    {"prompt": "red?", "chosen": "stop", "rejected": "go"},
    {"instruction": "add", "input": "1 2", "chosen": "Sum: it is 3", "rejected": "Sum: it is 4"},
    {"chosen": "Q: red? A: stop", "rejected": "Q: red? A: go"},
    {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    {
        "prompt": "q",
        "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
    },
]
TABLE = b'prompt,completion\nred?,stop\n"a\nb","c ""d"""\n'


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY)


def reader(tokenizer, path, **settings):
    def read(content: bytes) -> None:
        path.write_bytes(content)
        config = DataConfig(train=str(path), validation_samples=1, max_length=64, **settings)
        train, validation = load_datasets(config, tokenizer)
        assert "\n" not in "".join((*train.summary(), *validation.summary()))

    return read


def lines(rows) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in rows)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "txt", "jsonl.gz", "csv.gz", "parquet"])
def test_the_bytes_of_a_file(kind, tmp_path, tokenizer):
    match kind.split("."):
        case ["jsonl", *_]:
            content = lines(ROWS)
        case ["json"]:
            content = as_json(ROWS)
        case ["parquet"]:
            table = pyarrow.Table.from_pylist([{"prompt": "red?", "completion": "stop"}] * 4)
            pyarrow.parquet.write_table(table, tmp_path / "whole.parquet")
            content = (tmp_path / "whole.parquet").read_bytes()
        case _:
            content = TABLE.replace(b",", b"\t") if kind == "tsv" else TABLE
    inputs = damaged(content)
    if kind.endswith(".gz"):
        inputs = inputs.map(gzip.compress) | damaged(gzip.compress(content))
    fuzz(reader(tokenizer, tmp_path / f"rows.{kind}"), inputs)


@pytest.mark.parametrize("settings", [{}, {"chat_template": False}, {"train_on": "all", "bad_lines": "error"}], ids=str)
def test_the_values_of_rows(settings, tmp_path, tokenizer):
    rows = st.lists(st.sampled_from(ROWS).flatmap(changed), min_size=1, max_size=4)
    good = [{"text": "one"}, {"text": "two"}]
    fuzz(reader(tokenizer, tmp_path / "rows.jsonl", **settings), rows.map(lambda rows: lines([*good, *rows, *good])))


def test_the_columns_of_parquet(tmp_path, tokenizer):
    scalars = (
        st.none()
        | st.booleans()
        | st.integers(-9, 9)
        | st.floats()
        | st.text(max_size=4)
        | st.binary(max_size=4)
        | st.datetimes()
        | st.decimals(0, 9, places=1)
    )
    columns = st.dictionaries(
        st.sampled_from(["text", "prompt", "completion", "messages", "tools", "", "x"]),
        st.lists(scalars, min_size=3, max_size=3),
        min_size=1,
        max_size=3,
    )
    read = reader(tokenizer, tmp_path / "rows.parquet")

    def written(columns):
        try:
            table = pyarrow.table({name: [*values, None] for name, values in columns.items()})
        except (pyarrow.ArrowException, TypeError, OverflowError, ValueError):
            return
        pyarrow.parquet.write_table(table, tmp_path / "made.parquet")
        read((tmp_path / "made.parquet").read_bytes())

    fuzz(written, columns)


def test_chat_templates(tmp_path, tokenizer):
    whole = tokenizer.chat_template
    words = [
        word.encode()
        for word in (
            "{{ x }}",
            "{% for m in messages %}",
            "{% endfor %}",
            "{{ raise_exception('no') }}",
            "{{ messages[9].content }}",
            "{{ 1 // 0 }}",
            "{{ messages.x.y }}",
            "{{ strftime_now('%Q') }}",
            "{{ messages|map('zz') }}",
            "{% include 'x' %}",
            "{{ ''.__class__ }}",
            "{{ messages | tojson }}",
            "{% generation %}",
            "{% set x = namespace() %}",
            "{{ messages[0].content[0:1:0] }}",
            "{{ '%s' % (1, 2) }}",
            "{{ none + 1 }}",
            "{{ messages[0]['content'] | int | round(2) }}",
        )
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(lines([ROWS[3], ROWS[3], ROWS[5]] * 3))
    path = tmp_path / "chat.jinja"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        config = DataConfig(train=str(rows), validation_samples=1, max_length=64, chat_template=str(path))
        load_datasets(config, tokenizer)

    fuzz(
        read,
        damaged(whole.encode(), words),
        *(word + b"{{ messages }}" for word in words),
        *(whole.encode() + word for word in words),
    )
