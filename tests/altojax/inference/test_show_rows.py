"""`show` prints rows as they train: tokens, what is learnt, what is skipped, and what is not used."""

import io
import json

import pytest
from rich.console import Console
from runs import TINY, write_finished_run

from altojax.cli import main
from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import load_datasets
from jaxlm.data.show_tokens import choose, show
from jaxlm.files.tokenizer import load_tokenizer
from jaxrun.config.settings import ShowSettings
from jaxrun.store.journal import Journal
from twistjax.cli import main as twist

TOKENIZER = load_tokenizer(TINY)


@pytest.fixture
def config(tmp_path):
    """A config of two tasks, whose rows have a column that is not used and one that is broken."""
    rows = [{"prompt": f"{n}+{n}?", "completion": f"{2 * n} é", "score": n} for n in range(9)]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:4], '{"prompt": 3}', *lines[4:]]) + "\n")
    data = {"train": str(tmp_path / "rows.jsonl"), "validation_samples": 2}
    tree = {
        "output_dir": str(tmp_path / "run"),
        "model": {"model_name_or_path": str(TINY), "random_init": True},
        "tasks": [{"name": "sums", "data": data}, {"name": "plain", "data": {**data, "chat_template": False}}],
    }
    (tmp_path / "config.yaml").write_text(json.dumps(tree))
    return tmp_path / "config.yaml"


def shown(capsys, *words):
    assert main(["show", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    assert main(["show", *map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and not said.out
    return said.err


def test_tokens_that_are_learnt_stand_behind_an_asterisk(config, capsys):
    text = shown(capsys, config, "task=sums", "row=1")
    rows = config.parent / "rows.jsonl"
    count = len(load_datasets(DataConfig(train=str(rows), validation_samples=2), TOKENIZER)[0].examples[0].tokens)
    assert f"{rows}:1  {count} tokens, 5 of them learnt" in text
    assert "'\\n' *'0' *' ' *'Ã' *'©' *'<|im_end|>' '\\n'" in text
    assert "learnt  '0 é<|im_end|>'" in text and "end     '<|im_end|>'" in text
    assert "text    <|im_start|>user\n          0+0?<|im_end|>\n" in text
    assert "column 'score' is not used (9 rows)" in text and f"{rows}:5: columns are 'prompt'" in text


def test_what_is_shown_as_json_is_what_trains(config, capsys):
    parts = json.loads(shown(capsys, config, "--json", "rows=100"))
    assert [part["name"] for part in parts] == ["task sums", "task plain"]
    assert [part["skipped"][0]["line"] for part in parts] == [5, 5]
    data = DataConfig(train=str(config.parent / "rows.jsonl"), validation_samples=2)
    for row, example in zip(parts[0]["rows"], load_datasets(data, TOKENIZER)[0].examples, strict=True):
        assert [token["id"] for token in row["tokens"]] == example.tokens.tolist()
        assert [token["learnt"] for token in row["tokens"]] == example.targets.tolist()
        assert row["line"] == example.line and row["text"] == TOKENIZER.decode(example.tokens)
    assert parts[1]["rows"][0]["learnt"] == ["0 é<|im_end|>"] and "im_start" not in parts[1]["rows"][0]["text"]


def test_keys_of_the_config_and_the_split_can_be_chosen(config, capsys):
    [part] = json.loads(shown(capsys, config, "--json", "task=plain", "split=validation", "tasks.1.data.train_on=all"))
    assert len(part["rows"]) == 2
    assert all(token["learnt"] for row in part["rows"] for token in row["tokens"][1:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=sum"], "has no task 'sum' (did you mean 'sums'?), expected one of sums, plain"),
        (["row=1", "rows=2"], "given row=1 and rows=2, expected one of them"),
        (["row=5"], "rows.jsonl:5: columns are 'prompt', expected"),
        (["row=rows.jsonl:99"], "row=rows.jsonl:99: not among the 7 rows of"),
        (["rows=0"], "rows: given 0, expected at least 1"),
        (["slits=train"], "unknown key"),
    ],
)
def test_what_cannot_be_shown_is_one_line(config, words, message, capsys):
    assert message in refused(capsys, config, *words)


def test_a_run_shows_what_it_was_trained_on(tmp_path, capsys):
    run = write_finished_run(tmp_path)
    [part] = json.loads(shown(capsys, run, "--json", "task=second", "rows=1"))
    assert part["name"] == "task second" and len(part["rows"]) == 1
    assert "a run's 'seed' stays as it is, expected one of" in refused(capsys, run, "task=second", "seed=3")


def test_rows_are_shown_with_the_day_of_their_run(config, capsys):
    (config.parent / "dated.jinja").write_text("{{ strftime_now('%Y') }}" + str(TOKENIZER.chat_template))
    words = ["task=sums", "row=1", "--json", f"tasks.0.data.chat_template={config.parent / 'dated.jinja'}"]
    with Journal.open(config.parent / "run", config_text="a: 1\n", identity="d", facts={"day": "1999-12-31"}):
        [part] = json.loads(shown(capsys, config, *words))
    assert part["rows"][0]["text"].startswith("1999<|im_start|>user")


def test_on_a_terminal_what_is_learnt_is_coloured(config):
    data = DataConfig(train=str(config.parent / "rows.jsonl"), validation_samples=2)
    page = io.StringIO()
    rows = choose("rows", load_datasets(data, TOKENIZER)[0], ShowSettings(row=1), TOKENIZER)
    show([rows], Console(file=page, force_terminal=True, color_system="standard", width=20))
    assert "\x1b[1;32m'<|im_end|>'\x1b[0m" in page.getvalue() and "\x1b[2m'u'\x1b[0m" in page.getvalue()
    assert "*'" not in page.getvalue()


def test_what_a_row_holds_never_commands_the_terminal(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a\x1b[2Jb", "completion": "c\x07\u009b31m"}) + "\n")
    page = io.StringIO()
    data = load_datasets(DataConfig(train=str(rows), validation=str(rows)), TOKENIZER)[0]
    show([choose("rows", data, ShowSettings(row=1), TOKENIZER)], Console(file=page, force_terminal=False, width=200))
    assert not {"\x1b", "\x07", "\x9b"} & set(page.getvalue())
    assert r"a\x1b[2Jb" in page.getvalue()


def test_twistjax_shows_its_texts(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "abc", "id": 3}\n{"text": "def"}\n')
    config = tmp_path / "twist.yaml"
    config.write_text(
        json.dumps(
            {
                "output_dir": "run",
                "model": {"model_name_or_path": str(TINY), "random_init": True},
                "data": {"train": str(tmp_path / "a.jsonl"), "max_length": 4},
            }
        )
    )
    assert twist(["show", str(config), "row=2"]) == 0
    out = capsys.readouterr().out
    assert "learnt  'ef<|im_end|>'" in out and "column 'id' is not used (1 row)" in out
    assert twist(["show", str(config), "split=validation"]) == 2
    assert "expected split=train" in capsys.readouterr().err
