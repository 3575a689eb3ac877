"""A tokenizer that was saved here loads in transformers 4 and 5 alike."""

import json
import shutil

import pytest
from tokenizer_files import TINY
from transformers import AutoTokenizer

from jaxlm.files.tokenizer import load_tokenizer, save_tokenizer

NAMED = {"image_token": "<|pad|>"}
OF_FIVE = {"backend", "is_local", "local_files_only", "model_specific_special_tokens"}
"""Settings that transformers 5 writes and 4 does not know."""


def base(folder, **settings):
    shutil.copytree(TINY, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return load_tokenizer(folder)


def saved(folder, tokenizer, ends=()):
    folder.mkdir()
    save_tokenizer(folder, tokenizer, ends)
    return json.loads((folder / "tokenizer_config.json").read_text())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"additional_special_tokens": ["<|im_start|>"]},
        {"extra_special_tokens": ["<|im_start|>", "<|new|>"]},
        {"extra_special_tokens": NAMED},
        {"extra_special_tokens": NAMED, "additional_special_tokens": ["<|im_start|>"]},
        {"tokenizer_class": "TokenizersBackend"},
        {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False},
        {"chat_template": [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "x"}]},
    ],
)
def test_settings_are_those_that_transformers_4_knows_and_5_reads_the_same(settings, tmp_path):
    tokenizer = base(tmp_path / "base", **settings)
    written = saved(tmp_path / "saved", tokenizer)
    # transformers 4.57: no such class; a list where it asks for `.keys()`.
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert isinstance(written.get("extra_special_tokens", {}), dict)
    assert isinstance(written.get("additional_special_tokens", []), list)
    assert not OF_FIVE & written.keys()
    again = load_tokenizer(tmp_path / "saved")
    text = "<|im_start|>user\nhi<|new|><|im_end|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert again.extra_special_tokens == tokenizer.extra_special_tokens
    assert getattr(again, "image_token", None) == getattr(tokenizer, "image_token", None)
    assert again.chat_template == tokenizer.chat_template


def test_where_two_files_could_be_meant_it_is_the_one_that_transformers_takes(tmp_path):
    base(tmp_path / "base", chat_template="{{ messages[0].content }} of tokenizer_config.json")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages[0].content }} of its own file")
    (tmp_path / "base" / "tokenizer.model").write_bytes(b"of SentencePiece, never opened")
    ours, theirs = load_tokenizer(tmp_path / "base"), AutoTokenizer.from_pretrained(tmp_path / "base")
    assert ours.chat_template == theirs.chat_template == "{{ messages[0].content }} of its own file"
    assert ours("abc")["input_ids"] == theirs("abc")["input_ids"]


def test_the_end_of_text_becomes_what_ends_what_is_written(tmp_path):
    tokenizer = base(tmp_path / "base", eos_token="<|endoftext|>")
    text, turn = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert saved(tmp_path / "a", tokenizer, [turn])["eos_token"] == "<|im_end|>"
    assert load_tokenizer(tmp_path / "a").eos_token_id == turn
    assert load_tokenizer(tmp_path / "a").pad_token == tokenizer.pad_token
    assert saved(tmp_path / "b", tokenizer, [text, turn])["eos_token"] == "<|endoftext|>"
    assert saved(tmp_path / "c", tokenizer)["eos_token"] == "<|endoftext|>"
    # Another token there would change what the template writes.
    tokenizer.chat_template = "{{ eos_token }}" + tokenizer.chat_template
    assert saved(tmp_path / "d", tokenizer, [turn])["eos_token"] == "<|endoftext|>"
