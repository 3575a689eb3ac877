"""Rows held out for a test: in no other split, the same ones always, and asked for in one way."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import TINY

from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import load_datasets, load_splits
from jaxlm.data.text_rows import read_text
from jaxlm.files.tokenizer import load_tokenizer
from jaxrun.config.config import check_config
from jaxrun.process.errors import UserError

TOKENIZER = load_tokenizer(TINY)


def write(path, numbers):
    path.write_text("".join(json.dumps({"prompt": f"{n}+{n}?", "completion": str(2 * n)}) + "\n" for n in numbers))
    return str(path)


def split(path, **keys):
    return load_splits(check_config(DataConfig, {"train": path, **keys}, "a.yaml"), TOKENIZER)


def lines(rows):
    return [example.line for example in rows.examples]


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(4, 40), validation=st.integers(1, 5), test=st.integers(1, 5), fraction=st.booleans())
def test_every_row_is_in_one_split_and_validation_is_as_without_a_test(
    rows, validation, test, fraction, tmp_path_factory
):
    if validation + test >= rows:
        return
    path = write(tmp_path_factory.mktemp("rows") / "a.jsonl", range(rows))
    wanted = {"test_fraction": test / rows} if fraction else {"test_samples": test}
    parts = split(path, validation_samples=validation, **wanted)
    assert [len(part) for part in parts] == [rows - validation - test, validation, test]
    assert sorted(line for part in parts for line in lines(part)) == list(range(1, rows + 1))
    _, alone, nothing = split(path, validation_samples=validation)
    assert lines(parts[1]) == lines(alone) and nothing is None


def test_rows_are_split_off_beside_a_validation_file(tmp_path):
    path, other = write(tmp_path / "a.jsonl", range(20)), write(tmp_path / "b.jsonl", range(50, 60))
    assert [len(part) for part in split(path, validation=other, test_fraction=0.25)] == [15, 10, 5]


def test_a_source_of_its_own_gives_at_most_as_many_as_are_asked_for_and_changes_nothing_else(tmp_path):
    path, other = write(tmp_path / "a.jsonl", range(20)), write(tmp_path / "b.jsonl", range(50, 60))
    config = DataConfig(train=path, test=other, test_samples=4)
    parts = load_splits(config, TOKENIZER)
    assert [len(part) for part in parts] == [18, 2, 4]
    assert [lines(part) for part in parts[:2]] == [lines(part) for part in load_datasets(config, TOKENIZER)]
    assert [lines(part) for part in parts[:2]] == [
        lines(part) for part in load_datasets(DataConfig(train=path), TOKENIZER)
    ]


def test_rows_that_are_trained_on_or_chosen_by_are_named_and_left_out_of_the_test_alone(tmp_path):
    path, other = write(tmp_path / "a.jsonl", range(20)), write(tmp_path / "b.jsonl", [50, 3, 51, *range(10, 17)])
    train, validation, test = split(path, test=other)
    assert (len(train), len(validation), lines(test)) == (18, 2, [1, 3])
    places = ", ".join(f"{other}:{line}" for line in (2, 4, 5, 6, 7))
    said = f"8 of 10 rows are training or validation rows, too ({places} and 3 more), and are left out of the test"
    assert test.summary()[-1] == f"{other}: {said}"
    with pytest.raises(
        UserError, match=r"4 of 4 rows are training or validation rows, too .* expected some for the test"
    ):
        split(path, test=write(tmp_path / "c.jsonl", range(4)))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"test": "b.jsonl", "test_fraction": 0.1}, "test_fraction splits rows off train, expected it only where test"),
        ({"test_fraction": 0.1, "test_samples": 3}, "given test_fraction and test_samples, expected one of them"),
        ({"test": [{"path": "b.jsonl", "weight": 2}]}, "a source of test has a weight"),
        ({"test_file": "b.jsonl"}, "'test'"),
        ({"max_predict_samples": 9}, "'test_samples'"),
    ],
)
def test_what_is_asked_for_in_two_ways_or_by_another_name_is_one_line(keys, said):
    with pytest.raises(UserError) as error:
        check_config(DataConfig, {"train": "a.jsonl", **keys}, "a.yaml")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_rows_enough_for_validation_and_test_alone_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", range(6))
    with pytest.raises(UserError, match="6 usable rows, 2 of them for validation and 4 of them for test, expected"):
        split(path, validation_samples=2, test_samples=4)


def test_running_text_has_no_test_and_says_so(tmp_path):
    with pytest.raises(UserError, match=r"data\.test: no test is measured here"):
        read_text(DataConfig(train=write(tmp_path / "a.jsonl", range(9)), test_samples=2), TOKENIZER)
