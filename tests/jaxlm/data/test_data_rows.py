"""Rows as users have them: every format, every kind of file, and every way to be broken."""

import csv
import gzip
import json
import pickle
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.documents import Chat, Message, Pair, RowError, Text
from jaxlm.data.sources.formats import RowFormat, read_row
from jaxlm.data.sources.hub import choose_files
from jaxlm.data.sources.rows import SUFFIXES, read_rows
from jaxrun.process.errors import UserError


def read_document(row, format="auto", *, template=True):
    return read_row(row, RowFormat(format), template=template).document


ASKED = (Message("user", "2+2?"), Message("assistant", "4"))


@pytest.mark.parametrize(
    ("row", "document"),
    [
        ({"text": "abc"}, Text("abc")),
        ({"prompt": "2+2?", "completion": "4"}, Chat(ASKED)),
        (
            {"prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}]},
            Chat(ASKED, 1),
        ),
        ({"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}, Chat(ASKED)),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
                    {"role": "assistant", "content": "4"},
                ]
            },
            Chat(ASKED),
        ),
        ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, Chat(ASKED)),
        ({"conversations": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}, Chat(ASKED)),
        (
            {
                "system": "Be brief.",
                "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}],
            },
            Chat((Message("system", "Be brief."), *ASKED)),
        ),
        ({"instruction": "2+2?", "input": "", "output": "4"}, Chat(ASKED)),
        ({"instruction": "Add.", "input": "2 2", "output": "4"}, Chat((Message("user", "Add.\n\n2 2"), ASKED[1]))),
        ({"text": "unused", "prompt": "2+2?", "completion": "4"}, Chat(ASKED)),
    ],
)
def test_columns_decide_what_a_row_is(row, document):
    assert read_document(row, "auto", template=True) == document


@pytest.mark.parametrize(
    ("row", "document"),
    [
        ({"prompt": "2+2?", "completion": "4"}, Pair("2+2?", "4")),
        ({"instruction": "Add.", "output": "4"}, Pair("### Instruction:\nAdd.\n\n### Response:\n", "4")),
        (
            {"instruction": "Add.", "input": "2 2", "output": "4"},
            Pair("### Instruction:\nAdd.\n\n### Input:\n2 2\n\n### Response:\n", "4"),
        ),
        ({"text": "abc"}, Text("abc")),
    ],
)
def test_without_a_template_rows_are_plain_text(row, document):
    assert read_document(row, "auto", template=False) == document


@pytest.mark.parametrize(
    ("row", "format", "reason"),
    [
        ([1], "auto", "given a list, expected an object with named columns"),
        ({"promt": "a", "completion": "b"}, "auto", "columns are 'promt', 'completion', expected 'text'"),
        ({"promt": "a", "completion": "b"}, "prompt-completion", r"no 'prompt' column \(did you mean 'promt'\?\)"),
        ({"text": None}, "auto", r"columns are 'text' \(null\), expected"),
        ({"text": 3}, "auto", "'text' is a number, expected a string"),
        ({"text": "  \n"}, "auto", "'text' is empty"),
        ({"prompt": "a", "completion": ""}, "auto", "'completion' is empty"),
        ({"prompt": "a", "completion": ["b"]}, "auto", "expected both as strings or both as messages"),
        ({"prompt": "a", "completion": True}, "auto", "expected both as strings or both as messages"),
        ({"prompt": 1, "completion": 2}, "auto", "'prompt' is a number, expected a list of messages"),
        ({"messages": []}, "auto", "'messages' is an empty list"),
        ({"messages": "hi"}, "auto", "'messages' is a string"),
        ({"messages": ["hi"]}, "auto", r"messages\[0\] is a string, expected an object with 'role' and 'content'"),
        ({"messages": [{"role": "user"}]}, "auto", r"messages\[0\] has null as 'content'"),
        ({"messages": [{"content": "x"}]}, "auto", r"messages\[0\] has no 'role'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "auto", "no assistant turn"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "auto", r"messages\[0\] is empty"),
        ({"conversations": [{"from": "humen", "value": "x"}]}, "auto", r"by 'humen' \(did you mean 'human'\?\)"),
        ({"text": "half a pair \ud83d"}, "auto", "'text' holds half a surrogate pair"),
        ({"prompt": "\ud83d", "completion": "b"}, "auto", "'prompt' holds half a surrogate pair"),
        ({"messages": [{"role": "user", "content": "\udc00"}]}, "auto", "holds half a surrogate pair"),
    ],
)
def test_a_broken_row_says_what_is_wrong(row, format, reason):
    with pytest.raises(RowError, match=reason):
        read_document(row, format, template=True)


def test_a_conversation_needs_a_template():
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(RowError, match="a conversation needs a chat template"):
        read_document(row, "auto", template=False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["text", "prompt", "completion", "messages", "role", "content", "conversations", "from", "value"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    row=JSON,
    format=st.sampled_from(["auto", "text", "prompt-completion", "messages", "alpaca", "sharegpt"]),
    template=st.booleans(),
)
def test_no_json_at_all_gets_past_as_anything_but_a_document_or_a_reason(row, format, template):
    try:
        assert isinstance(read_document(row, format, template=template), Text | Pair | Chat)
    except RowError as error:
        assert str(error)


ROWS = [{"prompt": f"{n}+1?", "completion": f"{n + 1} ½\u2028"} for n in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def contents(source, split="train"):
    return [row.content for row in read_rows(str(source), split=split)]


def test_the_same_rows_come_out_of_every_kind_of_file(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(ROWS, indent=1).encode()))
    (tmp_path / "lines.json").write_text(LINES, encoding="utf-8")
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES.encode())
    (tmp_path / "spaced.jsonl").write_text(LINES.replace("\n", "\r\n\r\n"), encoding="utf-8", newline="")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        text = delimiter.join(ROWS[0]) + "\n" + "".join(delimiter.join(row.values()) + "\n" for row in ROWS)
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 12
    for file in files:
        assert contents(file) == ROWS, file.name


def test_a_cell_of_a_table_may_hold_line_breaks_and_quotes(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b'prompt,completion\n"a ""quoted""\r\nword, two",b\n\nc,d,e\n\xff,f\n"g"h,i\n' + b"j" * 200_000 + b",k\n"
    )
    rows = list(read_rows(str(tmp_path / "a.csv"), split="train"))
    assert rows[0].content == {"prompt": 'a "quoted"\r\nword, two', "completion": "b"}
    assert [(row.line, row.problem) for row in rows] == [
        (2, None),
        (5, "3 cells, expected 2 as in the first line"),
        (6, "not UTF-8 text"),
        (7, "not a row of a table (',' expected after '\"')"),
        (8, None),
    ]
    assert len(rows[-1].content["prompt"]) == 200_000


def test_conversations_in_a_table_are_json(tmp_path):
    with (tmp_path / "a.tsv").open("w", newline="") as file:
        table = csv.writer(file, "excel-tab")
        table.writerow(["messages", "system", "score"])
        table.writerow([json.dumps([{"role": turn.role, "content": turn.content} for turn in ASKED]), "Be brief.", ""])
    [row] = contents(tmp_path / "a.tsv")
    reading = read_row(row, RowFormat(), template=True)
    assert reading.document == Chat((Message("system", "Be brief."), *ASKED)) and not reading.unused


@pytest.mark.parametrize(
    ("columns", "row", "document"),
    [
        ({"prompt": "question", "completion": "answer"}, {"question": "2+2?", "answer": "4"}, Chat(ASKED)),
        ({"prompt": "completion", "completion": "prompt"}, {"prompt": "4", "completion": "2+2?"}, Chat(ASKED)),
        ({"text": "body"}, {"body": "abc"}, Text("abc")),
        ({"instruction": "q", "output": "a", "input": "more"}, {"q": "2+2?", "a": "4"}, Chat(ASKED)),
    ],
)
def test_columns_may_have_other_names(columns, row, document):
    layout = RowFormat(columns=columns)
    assert read_row(row, layout, template=True).document == document
    assert read_row({**row, "text": "x"}, layout, template=True).unused == ("text",)
    with pytest.raises(RowError, match="columns are 'x', expected") as caught:
        read_row({"x": "y"}, layout, template=True)
    assert all(f"'{name}'" in str(caught.value) for ours, name in columns.items() if ours != "input")


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
    for name, row in (("b.jsonl", ROWS[1]), ("a.jsonl", ROWS[0]), ("notes.md", {})):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    assert contents(tmp_path) == ROWS[:2]


def test_parquet_messages_are_read(tmp_path):
    row = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row] * 3), tmp_path / "a.parquet")
    assert [read_document(content, "auto", template=True) for content in contents(tmp_path / "a.parquet")] == [
        Chat(ASKED)
    ] * 3


def test_text_that_is_not_utf_8_in_parquet_is_a_bad_row(tmp_path):
    texts = pyarrow.array([b"one", b"\xff", b"three"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    rows = list(read_rows(str(tmp_path / "a.parquet"), split="train"))
    assert [row.problem for row in rows] == [None, "not UTF-8 text (byte 1 of a cell)", None]
    assert rows[2].content == {"text": "three"} and rows[2].line == 3


def test_a_bad_line_keeps_its_number_and_does_not_stop_the_others(tmp_path):
    path = tmp_path / "a.jsonl"
    bad = [
        b'{"text": "a", "text": "b"}',
        b'{"text": "a"',
        b'{"text": "\xff"}',
        b"[" * 100_000,
        b"1" * 5000,
        b"nonsense",
    ]
    path.write_bytes(b"\n".join([b'{"text": "one"}', b"", *bad, b'{"text": "last"}']))
    rows = list(read_rows(str(path), split="train"))
    assert [row.line for row in rows] == [1, 3, 4, 5, 6, 7, 8, 9]
    assert [row.problem is None for row in rows] == [True, False, False, False, False, False, False, True]
    assert rows[1].problem == "not usable JSON (the key 'text' is there twice)"
    del rows[1]
    assert rows[1].problem == "not valid JSON (Expecting ',' delimiter at column 13)"
    assert rows[2].problem == "not UTF-8 text (byte 11)"
    assert "nested too deeply" in rows[3].problem
    assert all("\n" not in row.problem for row in rows if row.problem)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize("name", ["data.pkl", "data.pt", "data.bin", "data.npy"])
def test_pickles_are_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="pickled data can run code and is not read"):
        contents(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "abc"}\n' * 999, mtime=0)[:-20], "cannot be read"),
        ("a.parquet", b"PAR1 but no more", "cannot be read"),
        ("a.json", b'{"text": ', "not valid JSON"),
        ("a.xlsx", b"text\nabc\n", "not a format that is read here, expected a .jsonl"),
        ("a.csv", b'text,id\nabc,"1\nabc,2\n', "a.csv:2: a quote that is never closed"),
        ("a.csv", b"text,text\nabc,1\n", "a.csv:1: two columns are named 'text'"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        contents(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_file_is_named_with_its_neighbour(tmp_path):
    (tmp_path / "train.jsonl").write_text(LINES)
    with pytest.raises(UserError, match=r"no such file \(did you mean 'train\.jsonl'\?\)"):
        contents(tmp_path / "trian.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no data files in this folder"):
        contents(tmp_path / "empty")


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def refuse(*arguments, **settings):
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        UserError, match=r"owner/name: no such file, and the hub .* \(Name or service not known"
    ) as caught:
        contents("owner/name")
    assert "\n" not in str(caught.value)


def test_a_hub_data_set_is_downloaded_by_split_and_never_its_code(monkeypatch, tmp_path):
    names = ["data/train-00000.jsonl", "data/test.jsonl", "load.py"]
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000.jsonl").write_text(LINES, encoding="utf-8")
    asked = []

    def download(name, *, repo_type, revision, allow_patterns):
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *arguments, **settings: info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    rows = list(read_rows("owner/name", split="train"))
    assert [row.content for row in rows] == ROWS
    assert rows[0].source == "owner/name/data/train-00000.jsonl"
    assert asked == ["data/train-00000.jsonl"]
    with pytest.raises(
        UserError, match=r"no data files for split 'validation', expected some among .*data/test\.jsonl"
    ):
        contents("owner/name", split="validation")


@pytest.mark.parametrize(
    ("files", "split", "config", "chosen"),
    [
        (
            ["main/train-0.parquet", "main/test-0.parquet", "socratic/train-0.parquet"],
            "train",
            "main",
            ["main/train-0.parquet"],
        ),
        (["default/train/0000.parquet", "default/test/0000.parquet"], "test", None, ["default/test/0000.parquet"]),
        (["trainer.json", "train.jsonl", "README.md"], "train", None, ["train.jsonl"]),
        (["alpaca_data.json", "README.md"], "train", None, ["alpaca_data.json"]),
        (["alpaca_data.json"], "test", None, []),
        (["train-0.parquet", "train-1.parquet", "train.csv"], "train", None, ["train-0.parquet", "train-1.parquet"]),
        (["train.py", "train.xlsx", "train.pkl"], "train", None, []),
    ],
)
def test_a_split_is_found_by_the_word_in_its_path(files, split, config, chosen):
    assert choose_files(files, SUFFIXES, split=split, config=config) == chosen
