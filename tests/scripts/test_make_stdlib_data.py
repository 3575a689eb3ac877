import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import load_datasets
from jaxlm.data.text_rows import read_text
from jaxlm.files.tokenizer import load_tokenizer

ROOT = Path(__file__).parent.parent.parent
COUNTS = {"summary": (400, 32), "naming": (400, 32), "style": (300, 32), "prose": (400, 32), "text": (2000, 200)}
SOURCE = '''
"""A module about cats. It is long enough to be a paragraph of its own, is it not?"""


@decorator
def stroke(cat, times=3):
    """Stroke a cat gently some times.

    The cat purrs when it likes this and leaves when it does not. Nothing else can be told.
    """
    for _ in range(times):
        cat.purr()


def _hidden(cat):
    """Hide a cat where none can see it."""
    return cat.box.put(cat, deep=True)


def undocumented(cat):
    return cat.box
'''


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The files as the command line makes them, by name."""
    folder = tmp_path_factory.mktemp("quickstart")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    subprocess.run(
        [sys.executable, ROOT / "scripts" / "setup" / "make_stdlib_data.py", folder], check=True, env=environment
    )
    return {file.name: file for file in folder.iterdir()}


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_each_task_has_its_rows_and_no_row_twice(tasks):
    assert sorted(tasks) == [f"{task}.{split}.jsonl" for task in sorted(COUNTS) for split in ("train", "validation")]
    for task, counts in COUNTS.items():
        train, validation = (rows(tasks[f"{task}.{split}.jsonl"]) for split in ("train", "validation"))
        assert (len(train), len(validation)) == counts
        asked = [row.get("text") or row["prompt"] for row in train + validation]
        assert len({text.lower() for text in asked}) == sum(counts)


def test_there_is_enough_running_text_for_the_second_quick_start(tasks, smollm2):
    data = {split: str(tasks[f"text.{split}.jsonl"]) for split in ("train", "validation")}
    train, validation = read_text(DataConfig(**data, max_length=64), load_tokenizer(smollm2))
    assert len(train.tokens) >= 1200 and len(validation.tokens) >= 96


def test_rows_are_short_enough_for_two_cores(tasks, smollm2):
    tokenizer = load_tokenizer(smollm2)
    for task, median, longest in (("summary", 60, 128), ("naming", 32, 64), ("prose", 48, 96)):
        config = DataConfig(
            train=str(tasks[f"{task}.train.jsonl"]),
            validation=str(tasks[f"{task}.validation.jsonl"]),
            chat_template=False,
            truncation="error",
            max_length=longest,
        )
        for dataset in load_datasets(config, tokenizer):
            assert not dataset.skipped
            lengths = sorted(len(example.tokens) for example in dataset.examples)
            assert lengths[len(lengths) // 2] <= median


def test_the_same_python_writes_the_same_bytes(tasks, script, called, tmp_path):
    module = script("make_stdlib_data")
    assert called(module, str(tmp_path)) == 0
    for name, file in tasks.items():
        assert (tmp_path / name).read_bytes() == file.read_bytes()


def test_a_function_becomes_its_summary_and_its_name(script):
    module = script("make_stdlib_data")
    tree = ast.parse(SOURCE)
    stroke, hidden, undocumented = tree.body[1:]
    assert dict(module._function_rows(stroke)) == {
        "naming": {"prompt": "Name a Python function. Stroke a cat gently some times.", "completion": "stroke"},
        "summary": {
            "prompt": "Describe this function in one line.\n"
            "def stroke(cat, times=3):\n    for _ in range(times):\n        cat.purr()",
            "completion": "Stroke a cat gently some times.",
        },
    }
    assert list(dict(module._function_rows(hidden))) == ["summary"]
    assert list(module._function_rows(undocumented)) == []
    assert list(module._paragraphs(tree)) == [ast.get_docstring(tree)]
    told = "The cat purrs when it likes this and leaves when it does not. Nothing else can be told."
    assert list(module._paragraphs(stroke)) == [told]
    assert module._document(stroke) == told and module._document(undocumented) == ""


def test_a_library_without_docstrings_is_refused(script, called, tmp_path, monkeypatch, capsys):
    module = script("make_stdlib_data")
    (tmp_path / "cats.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def")
    monkeypatch.setattr(module.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert called(module, str(tmp_path / "out")) == 2
    assert "is this a complete standard library?" in capsys.readouterr().err
    assert list(Path(tmp_path / "out").iterdir()) == []
