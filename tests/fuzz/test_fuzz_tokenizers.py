"""Tokenizers: tokenizer.json and tokenizer_config.json."""

import json

import pytest
from damage import ANYTHING, as_json, changed, damaged
from fuzzing import fuzz
from hypothesis import strategies as st
from originals import TINY, copy

from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import load_datasets
from jaxlm.files.tokenizer import load_tokenizer, save_tokenizer

ROWS = [
    {"prompt": "red?", "completion": "stop"},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
] * 2
PARTS = [
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "x"},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Sequence", "pretokenizers": []},
    {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    },
    {"type": "Lowercase"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 10**9, "stop": 0},
]

MORE = {
    "tokenizer.json": ["normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"],
    "tokenizer_config.json": [
        "extra_special_tokens",
        "additional_special_tokens",
        "auto_map",
        "split_special_tokens",
        "add_bos_token",
        "model_input_names",
        "added_tokens_decoder",
    ],
}


@pytest.mark.parametrize("name", MORE)
def test_tokenizers(name, tmp_path):
    folder = copy(TINY, tmp_path / "base")
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"\n".join(map(as_json, ROWS)))
    whole = (folder / name).read_bytes()
    tree = json.loads(whole)

    def read(content: bytes) -> None:
        (folder / name).write_bytes(content)
        tokenizer = load_tokenizer(folder)
        load_datasets(DataConfig(train=str(rows), validation_samples=1, max_length=64), tokenizer)
        (tmp_path / "out").mkdir(exist_ok=True)
        save_tokenizer(tmp_path / "out", tokenizer, [0])

    more = [*tree, *MORE[name]]
    values = ANYTHING | st.sampled_from(PARTS)
    other = st.dictionaries(st.sampled_from(more), values, min_size=1, max_size=3).map(lambda changes: tree | changes)
    small = {key: value for key, value in tree.items() if key != "model"}
    moved = changed(small, values).map(lambda one: {**tree, **one} if isinstance(one, dict) else one)
    fuzz(read, (other | moved).map(as_json) | damaged(whole))
