"""Data sets from a `data` section: splits, lengths, reports, and the errors on the way."""

import json

import numpy as np
import pytest
from tokenizer_files import TINY

from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import Dataset, load_datasets
from jaxlm.data.documents import Text
from jaxlm.data.examples import Example, check_vocabulary
from jaxlm.files.tokenizer import load_tokenizer
from jaxrun.config.config import check_config, dump_config
from jaxrun.config.strict_yaml import parse_yaml
from jaxrun.process.errors import UserError

TOKENIZER = load_tokenizer(TINY)


@pytest.fixture
def train(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [{"prompt": f"{n}+{n}?", "completion": str(2 * n)} for n in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path, **settings):
    return load_datasets(DataConfig(train=str(path), **settings), TOKENIZER)


def lines(dataset):
    return [example.line for example in dataset.examples]


def test_validation_is_split_off_the_same_way_every_time(train):
    kept, held_out = load(train)
    assert (len(kept), len(held_out)) == (45, 5)
    assert sorted(lines(kept) + lines(held_out)) == list(range(1, 51))
    assert lines(held_out) == lines(load(train)[1]) == [2, 5, 7, 16, 41]
    assert [len(part) for part in load(train, validation_samples=8)] == [42, 8]
    assert [len(part) for part in load(train, validation_fraction=0.5)] == [25, 25]


def test_a_validation_file_is_used_as_it_is(train, tmp_path):
    other = tmp_path / "validation.jsonl"
    other.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(9)))
    kept, held_out = load(train, validation=str(other))
    assert (len(kept), len(held_out)) == (50, 9)
    assert lines(load(train, validation=str(other), validation_samples=4)[1]) == sorted(
        lines(load(train, validation=str(other), validation_samples=4)[1])
    )
    assert len(load(train, validation=str(other), validation_samples=4)[1]) == 4


def test_fewer_rows_are_a_choice_of_all_of_them(train):
    kept, held_out = load(train, max_samples=20)
    chosen = sorted(lines(kept) + lines(held_out))
    assert len(chosen) == 20
    assert chosen != list(range(1, 21))


def test_the_digest_tells_every_change_of_what_is_learnt(train):
    digests = {
        load(train, **settings)[0].digest
        for settings in (
            {},
            {"train_on": "all"},
            {"chat_template": False},
            {"max_length": 26},
            {"validation_samples": 9},
        )
    }
    assert len(digests) == 5
    assert load(train)[0].digest == load(train)[0].digest
    one = Example(np.array([1, 2, 3], np.int32), np.array([False, True, True]), 1, "a", Text("x"))
    two = Example(np.array([1, 2], np.int32), np.array([False, True]), 9, "b", Text("y"))
    assert Dataset("a", (one, two)).digest == Dataset("b", (one, two)).digest != Dataset("a", (two, one)).digest


@pytest.mark.parametrize("truncation", ["truncate", "drop", "error"])
def test_rows_longer_than_max_length(tmp_path, truncation):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * n}) + "\n" for n in (5, 40, 6, 7)))
    settings = {"max_length": 10, "truncation": truncation, "validation_samples": 1}
    if truncation == "error":
        with pytest.raises(UserError, match=r"a\.jsonl:2: 41 tokens, expected at most max_length=10"):
            load(path, **settings)
        return
    kept, held_out = load(path, **settings)
    examples = {example.line: example for example in (*kept.examples, *held_out.examples)}
    if truncation == "truncate":
        assert [len(examples[line].tokens) for line in (1, 2, 3, 4)] == [6, 10, 7, 8]
        assert [examples[line].truncated for line in (1, 2, 3, 4)] == [False, True, False, False]
        assert TOKENIZER.eos_token_id not in examples[2].tokens
    else:
        assert sorted(examples) == [1, 3, 4]
        assert [str(skipped) for skipped in kept.skipped] == [f"{path}:2: 41 tokens, expected at most max_length=10"]


def test_bad_rows_are_skipped_and_named(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"prompt": "a", "completion": "b"})
    cut = json.dumps({"prompt": "a" * 99, "completion": "b"})
    path.write_text("\n".join([good, "{", cut, good, '{"prompt": "a"}', good]))
    kept, _ = load(path, max_length=40, chat_template=False)
    assert [(skipped.line, skipped.reason.split(",")[0]) for skipped in kept.skipped] == [
        (2, "not valid JSON (Expecting property name enclosed in double quotes at column 2)"),
        (3, "no token to learn within max_length=40"),
        (5, "columns are 'prompt'"),
    ]
    assert kept.summary()[1:3] == [f"{path}: 3 rows skipped", f"  {path}:2: {kept.skipped[0].reason}"]
    assert kept.notes[0] == f"{path}: WARNING: 3 of 6 rows are skipped, more than a tenth"
    with pytest.raises(UserError, match=r"a\.jsonl:2: not valid JSON") as caught:
        load(path, bad_lines="error")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no usable row among 0"),
        ("{\n{\n", r"no usable row among 2; the first: .*a\.jsonl:1: not valid JSON"),
        ('{"text": "just one"}\n', "1 usable row, 1 of them for validation, expected at least one to train on"),
    ],
)
def test_a_file_without_enough_rows_is_refused(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load(path)


def test_a_template_that_cannot_be_masked_stops_the_run(train):
    tokenizer = load_tokenizer(TINY)
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match=r"train\.jsonl:1: the chat template rewrites .*; train_on=all needs no such"):
        load_datasets(DataConfig(train=str(train)), tokenizer)


def test_a_template_that_is_not_there_is_asked_for(train):
    tokenizer = load_tokenizer(TINY)
    tokenizer.chat_template = None
    assert (
        TOKENIZER.decode(load_datasets(DataConfig(train=str(train)), tokenizer)[0].examples[0].tokens)
        == "0+0?\n0<|im_end|>"
    )
    with pytest.raises(UserError, match="chat_template is true but the tokenizer has no chat template"):
        load_datasets(DataConfig(train=str(train), chat_template=True), tokenizer)


def test_tokens_beyond_the_models_vocabulary_are_refused(train):
    kept, _ = load(train)
    check_vocabulary(kept.examples, 259)
    with pytest.raises(UserError, match=r"train\.jsonl:1: the tokenizer gives token 258, expected ids below .* 258"):
        check_vocabulary(kept.examples, 258)


def check(**tree):
    return check_config(DataConfig, tree, "a.yaml")


def test_the_config_survives_being_written_down():
    for config in (DataConfig(train="a"), DataConfig(train="a", validation="b", max_length=77, separator=" ")):
        assert check(**parse_yaml(dump_config(config), "written")) == config


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": "a", "max_seq_length": 9}, r"max_seq_length.*did you mean 'max_length'"),
        ({"train": "a", "formt": "text"}, r"formt.*did you mean 'format'"),
        ({"train": "a", "format": "csv"}, r"format.*'auto'"),
        ({"validation": "a"}, "train"),
        ({"train": "a", "max_length": "9"}, "max_length"),
        ({"train": "a", "validation": "b", "validation_fraction": 0.1}, "only where validation is null"),
        ({"train": "a", "validation_samples": 3, "validation_fraction": 0.1}, "expected one of them"),
        ({"train": "a", "validation_fraction": 1.0}, "validation_fraction.*less than 1"),
    ],
)
def test_a_wrong_key_is_one_line_with_the_right_one(tree, message):
    with pytest.raises(UserError, match=message) as caught:
        check(**tree)
    assert "\n" not in str(caught.value)
