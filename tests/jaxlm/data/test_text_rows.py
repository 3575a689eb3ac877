"""Running text: joined, cut into rows of one length, nothing lost but the last incomplete row."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import TINY

from jaxlm.data.config import DataConfig
from jaxlm.data.text_rows import read_text, read_validation_text
from jaxlm.files.tokenizer import load_tokenizer
from jaxrun.process.errors import UserError

TOKENIZER = load_tokenizer(TINY)


def rows(path, **keys):
    return read_text(DataConfig(train=str(path), **keys), TOKENIZER)


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text("ab", min_size=1, max_size=40), min_size=9, max_size=12), length=st.integers(2, 9))
def test_rows_are_the_documents_in_order_each_with_its_end(texts, length, tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    joined = [token for text in texts for token in [*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id]]
    kept, held_out = rows(path, max_length=length, validation_samples=1)
    whole = np.array(joined[: len(joined) // length * length]).reshape(-1, length)
    found = sorted(map(tuple, np.concatenate([kept.tokens, held_out.tokens]).tolist()))
    assert found == sorted(map(tuple, whole.tolist()))
    assert len(held_out.tokens) == 1 and not kept.targets[:, 0].any() and kept.targets[:, 1:].sum() > 0


def test_a_text_file_is_one_document_plain_or_packed(tmp_path):
    text = "What is running?\n\nText is.\n" * 9
    (tmp_path / "a.txt").write_text("\ufeff" + text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    found = [rows(tmp_path / name, max_length=16) for name in ("a.txt", "b.txt.gz")]
    np.testing.assert_array_equal(found[0][0].tokens, found[1][0].tokens)
    assert found[0][0].digest == found[1][0].digest != found[0][1].digest
    assert rows(tmp_path, max_length=16)[0].tokens.shape[0] > found[0][0].tokens.shape[0]


def test_validation_text_of_its_own_is_cut_to_the_samples_asked_for(tmp_path):
    (tmp_path / "a.txt").write_text("a b c " * 60)
    (tmp_path / "b.txt").write_text("d e f " * 60)
    config = DataConfig(
        train=str(tmp_path / "a.txt"),
        validation=str(tmp_path / "b.txt"),
        max_length=8,
        max_samples=5,
        validation_samples=3,
    )
    train, validation = read_text(config, TOKENIZER)
    assert train.tokens.shape == (5, 8) and validation.tokens.shape == (3, 8)
    assert read_validation_text(config, TOKENIZER).digest == validation.digest
    assert train.summary() == [f"{tmp_path}/a.txt: 5 rows of 8 tokens (35 targets)"]


def test_completions_alone_count_where_rows_are_pairs(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}+{n}?", "completion": "yes"}) + "\n" for n in range(30))
    )
    kept, _ = rows(tmp_path / "a.jsonl", max_length=16)
    assert 0 < kept.targets.mean() < 0.8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a b", "expected at least a row of max_length=64"),
        (b"a b c " * 20, r"1 row of 64 tokens, 1 of them for validation, expected at least one to train on"),
        (b"a\nb \xff", "x.txt: no usable row among 1; the first: .*x.txt:2: not UTF-8 text"),
    ],
)
def test_text_that_does_not_do_is_refused_in_one_line(content, message, tmp_path):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        rows(tmp_path / "x.txt", max_length=64)
