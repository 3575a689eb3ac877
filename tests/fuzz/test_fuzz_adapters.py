"""Adapters: adapter_config.json, weights, and the end tokens beside them."""

import json
import struct

import numpy as np
import pytest
from damage import ANYTHING, NUMBERS, SCALARS, as_json, changed, damaged
from fuzzing import fuzz
from hypothesis import strategies as st
from originals import copy, tiny_config, write_adapter

from altojax.adapters.peft_config import _KINDS, _UNSET, read_ends
from altojax.adapters.peft_files import read_adapter
from altojax.inference.model_source import find_source

KNOWN = [
    {"layers_to_transform": "all", "layers_pattern": "("},
    {"target_modules": [7]},
    {"lora_alpha": True},
    {"lora_alpha": float("inf")},
]
NAMES = ["q_proj", "all-linear", "(", ".*", "LORA", "CAUSAL_LM", "gaussian", r"([a-z.0]|[a-z.0][a-z.0])+$"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("adapters") / "adapter")


def read(folder) -> None:
    spec, arrays = read_adapter(folder, tiny_config())
    assert np.isfinite(spec.scale) and all(np.isfinite(half).all() for pair in arrays.values() for half in pair)


def test_adapter_configs(adapter, tmp_path):
    folder = copy(adapter, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    whole = json.loads(path.read_text())

    def written(content: bytes) -> None:
        path.write_bytes(content)
        read(folder)

    values = ANYTHING | st.sampled_from(NAMES) | st.lists(st.sampled_from(NAMES), max_size=2)
    fields = st.sampled_from([*_KINDS, *_UNSET, "peft_type", "fan_in_fan_out"])
    other = st.dictionaries(fields, values, min_size=1, max_size=3).map(lambda changes: as_json(whole | changes))
    known = [as_json(whole | changes) for changes in KNOWN]
    fuzz(written, other | changed(whole, values).map(as_json) | damaged(path.read_bytes()), *known)


def test_the_header_of_adapter_weights(adapter, tmp_path):
    folder = copy(adapter, tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def written(content: bytes) -> None:
        path.write_bytes(content)
        read(folder)

    values = (
        SCALARS
        | st.sampled_from(["F8_E4M3", "I32", "F64", "F16", "BOOL"])
        | st.lists(st.sampled_from(NUMBERS), max_size=3)
    )
    texts = changed(header, values).map(as_json)
    fuzz(written, texts.map(lambda text: struct.pack("<Q", len(text)) + text + body) | damaged(whole))


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja"])
def test_what_lies_beside_adapter_weights(name, adapter, tmp_path):
    folder = copy(adapter, tmp_path / "adapter")
    (folder / "chat_template.jinja").write_text("{{ messages }}")

    def written(content: bytes) -> None:
        (folder / name).write_bytes(content)
        read_ends(folder)
        find_source(str(folder.parent), adapters=[str(folder)])

    whole = (folder / name).read_bytes()
    inputs = damaged(whole)
    if name.endswith(".json"):
        inputs |= changed(json.loads(whole)).map(as_json) | ANYTHING.map(lambda ends: as_json({"eos_token_id": ends}))
    fuzz(written, inputs)
