"""Inference prompts as training did: the same day, the same prompt format, the same end-of-answer token."""

import io
import json
import shutil
from datetime import date, datetime
from pathlib import Path

import jax.numpy as jnp
import pytest
from rich.console import Console
from runs import TINY
from stopping import AskedAfter
from transformers.utils import chat_template_utils

from altojax.cli import main
from altojax.config.tune_config import TuneConfig
from altojax.inference.adapted_model import AdaptedModel
from altojax.inference.model_source import find_source
from altojax.run.tuner import Tuner
from jaxlm.data.dataset import load_datasets
from jaxlm.data.encoding import Encoder
from jaxlm.data.prompting import Asking, asking_of
from jaxlm.files.hf import save_model
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import load_model
from jaxrun.config.config import load_config
from jaxrun.store.journal import Journal

DATED = "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y') }}<|im_end|>\n"
TURN, TEXT = 258, 256
"""Ids of <|im_end|> and <|endoftext|>."""


def make_base(folder: Path, *, beginning: str = "", **settings) -> Path:
    """configs/tiny with another chat template or other special tokens."""
    shutil.copytree(TINY, folder)
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"chat_template": beginning + told["chat_template"]} | settings))
    return folder


def make_config(folder: Path, base: Path, rows: list[dict], **data) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(file), "validation": str(file), "max_length": 96} | data
    config = {
        "output_dir": str(folder / "run"),
        "model": {"model_name_or_path": str(base), "random_init": True, "dtype": "float32"},
        "eval_samples": 0.5,
        "early_exit": {"preset": "none"},
        "search": {"lora_rank": 2, "batch_size": 2, "train_samples": 8, "target_modules": ["q_proj"]},
        "tasks": [{"name": "t", "data": data}],
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    return folder / "run.yaml"


CHATS = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in ("ab", "cd")]


@pytest.fixture
def today(monkeypatch, few_shapes):
    """Sets the clock of the machine to a day."""
    monkeypatch.setattr("altojax.report.write_report.write_report", lambda run_dir: [])

    def set_day(day: date) -> None:
        class Day(date):
            @classmethod
            def today(cls):
                return day

        class Now(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(day.year, day.month, day.day, 23, 59)

        for module in ("altojax.run.prepare", "altojax.run.tuner", "jaxlm.data.encoding", "jaxrun.store.opening"):
            monkeypatch.setattr(f"{module}.date", Day)
        monkeypatch.setattr(chat_template_utils, "datetime", Now)

    return set_day


def tune(config: Path, looks: int = 10_000) -> int:
    return Tuner(load_config(TuneConfig, config, []), console=Console(quiet=True)).run(AskedAfter(looks))


@pytest.mark.slow
def test_a_run_goes_on_and_is_finished_and_judged_by_the_day_on_which_it_opened(tmp_path, today, capsys):
    config = make_config(tmp_path, make_base(tmp_path / "base", beginning=DATED), CHATS)
    today(date(2026, 3, 1))
    assert tune(config, looks=1) == 130
    today(date(2026, 3, 2))
    assert tune(config) == 0
    with Journal.read(tmp_path / "run") as journal:
        assert journal.get("day") == "2026-03-01"
        points = len(journal.points())
    today(date(2027, 12, 31))
    said = io.StringIO()
    assert Tuner(load_config(TuneConfig, config, []), console=Console(file=said)).run() == 0
    assert "finished already" in said.getvalue() and "resuming" not in said.getvalue()
    assert main(["evaluate", str(tmp_path / "run"), f"out={tmp_path}/loss.json"]) == 0
    losses = [one["loss"] for one in json.loads((tmp_path / "loss.json").read_text())["results"]]
    with Journal.read(tmp_path / "run") as journal:
        assert len(journal.points()) == points, "a finished run is not trained again"
        found = {split: [p.loss for p in journal.points() if p.split == split] for split in ("base", "validation")}
    assert losses == pytest.approx([found["base"][0], min(found["validation"])], abs=1e-5)
    assert main(["show", str(tmp_path / "run"), "row=1"]) == 0
    assert "01 Mar 2026" in capsys.readouterr().out.replace("\n", "")
    assert "| date given to the chat template | 2026-03-01 |" in (tmp_path / "run/t/best/README.md").read_text()
    assert main(["doctor", str(config)]) == 0
    assert "the chat template writes the date, which is 2026-03-01 for all of this run" in capsys.readouterr().out
    assert Tuner(load_config(TuneConfig, config, []), overwrite=True).prepared.day == date(2027, 12, 31)


def prompts_of(monkeypatch) -> list[tuple[list[int], tuple[int, ...], int]]:
    """Records what a model is asked to continue, what ends it and how long it may be; it says nothing."""
    asked = []

    def complete(self, prompts, slot, sampling, *, eos_ids, made_some=lambda count: None):
        asked.extend((prompt.tolist(), tuple(eos_ids), sampling.max_new_tokens) for prompt in prompts)
        made_some(len(prompts))
        return [prompt[:0] for prompt in prompts]

    monkeypatch.setattr(AdaptedModel, "complete", complete)
    return asked


ROWS = {
    "text": ([{"text": "q and more"}], "q", "q", {}),
    "pairs": ([{"prompt": "q", "completion": "a"}], "q", "q\n", {"chat_template": False}),
    "spaced": ([{"prompt": "q", "completion": " a"}], "q", "q", {"chat_template": False}),
    "separated": ([{"prompt": "q", "completion": "a"}], "q", "q => ", {"chat_template": False, "separator": " => "}),
    "alpaca": (
        [{"instruction": "q", "output": "a"}],
        "q",
        "### Instruction:\nq\n\n### Response:\n",
        {"chat_template": False},
    ),
    "chat": (CHATS, "q", "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", {}),
}


@pytest.mark.parametrize("kind", ROWS)
def test_how_rows_ask_is_known_from_them(kind, tmp_path):
    rows, prompt, written, data = ROWS[kind]
    config = load_config(TuneConfig, make_config(tmp_path, TINY, rows * 2, **data), []).tasks[0].data
    tokenizer = load_tokenizer(TINY)
    examples = load_datasets(config, tokenizer)[0].examples
    encoder, asking = Encoder.of(config, tokenizer), asking_of(examples)
    template = encoder.template and kind != "text"
    asked = encoder.asked(asking.document(prompt, template=template))
    assert tokenizer.decode(asked) == written
    if kind != "chat":
        assert asked.tolist() == examples[0].tokens[: len(asked)].tolist()


@pytest.mark.slow
def test_a_prompt_is_written_as_the_rows_of_its_run_were(tmp_path, monkeypatch, today, capsys):
    rows, prompt, written, data = ROWS["separated"]
    today(date(2026, 3, 1))
    assert tune(make_config(tmp_path, make_base(tmp_path / "base"), rows * 2, **data)) == 0
    asked = prompts_of(monkeypatch)
    assert main(["generate", str(tmp_path / "run"), f"prompt={prompt}"]) == 0
    assert load_tokenizer(TINY).decode(asked[0][0]) == written
    assert capsys.readouterr().err == ""
    _, model = load_model(tmp_path / "base", dtype=jnp.float32, random_init=True)
    save_model(tmp_path / "whole", model.config, model, dtype=jnp.float32, tokenizer=load_tokenizer(TINY))
    words = ["generate", str(tmp_path / "whole"), f"prompt={prompt}"]
    assert main([*words, f"adapter={tmp_path}/run/t/best"]) == 0
    assert asked.pop()[0] == asked[0][0] and capsys.readouterr().err == ""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "run" / "t" / "best", elsewhere)
    (elsewhere / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}!{% endfor %}")
    assert main([*words, f"adapter={elsewhere}"]) == 0
    assert load_tokenizer(TINY).decode(asked.pop()[0]) == "q!"
    assert "the adapter's chat template writes the prompt" in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "run"), "prompt=q", "chat_template=true", "system=s"]) == 0
    assert load_tokenizer(TINY).decode(asked[1][0]).startswith("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq")


@pytest.mark.slow
def test_what_ends_a_turn_ends_a_text_wherever_it_is_written(tmp_path, monkeypatch, today, capsys):
    today(date(2026, 3, 1))
    base = make_base(tmp_path / "base", eos_token="<|endoftext|>")
    told = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(told | {"eos_token_id": TEXT}))
    assert tune(make_config(tmp_path, base, CHATS * 2)) == 0
    run, adapter, merged = tmp_path / "run", tmp_path / "run" / "t" / "best", tmp_path / "merged"
    assert main(["export", str(run), "kind=merged", "dtype=float32", f"out={merged}"]) == 0
    for folder in (adapter, merged):
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [TURN, TEXT]
        assert load_tokenizer(folder).eos_token_id == TURN
    assert "| ends a text | " in (card := (adapter / "README.md").read_text()) and "im_end" in card
    usual = (run / "config.yaml").stat().st_mode
    assert {path.stat().st_mode for folder in (adapter, merged) for path in folder.iterdir()} == {usual}

    asked = prompts_of(monkeypatch)
    for words in (["generate", str(run)], ["generate", str(merged)], ["generate", str(merged), f"adapter={adapter}"]):
        assert main([*words, "prompt=q"]) == 0
        assert asked.pop()[1] == (TURN, TEXT)
    assert "the base's chat template writes the prompt" in capsys.readouterr().err
    assert main(["evaluate", str(run), "exact_match=true"]) == 0
    said = capsys.readouterr().err
    assert "rows; losses" in said and "done 4/4 answers; t/best" in said
    rows = ["evaluate", str(merged), f"data={tmp_path}/rows.jsonl", "exact_match=true"]
    assert main(rows) == 0
    assert {ends for _, ends, _ in asked} == {(TURN, TEXT)}
    assert {most for *_, most in asked} == {len("b") + 2}, "the longest reference, its end and the line break after it"
    assert main([*rows, "max_new_tokens=7"]) == 0
    assert asked.pop()[2] == 7


def test_a_run_that_did_not_note_how_it_asks_asks_as_its_config_says(tmp_path, today):
    today(date(2026, 3, 1))
    for format, expected in (("auto", Asking()), ("alpaca", Asking("alpaca"))):
        folder = tmp_path / format
        folder.mkdir()
        config = make_config(folder, TINY, [{"instruction": "q", "output": "a"}] * 2, format=format)
        text = json.dumps(json.loads(config.read_text()))
        with Journal.open(folder / "run", config_text=text, identity="d"):
            pass
        (folder / "run" / "t" / "best").mkdir(parents=True)
        assert find_source(str(folder / "run")).asking == expected
