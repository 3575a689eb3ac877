"""Base models: config.json, generation_config.json, safetensors with their index, and GGUF files."""

import json
import math
import struct

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from damage import NUMBERS, SCALARS, as_json, changed, damaged
from fuzzing import fuzz
from hypothesis import strategies as st
from originals import copy, gguf_metadata, write_base, write_gguf
from safetensors.numpy import load_file, save_file

from jaxlm.families.registry import FAMILIES, random_config
from jaxlm.files.hf_config import from_hf, to_hf
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import load_model, read_model_config

WORDS = ["", "silu", "gelu", "linear", "llama3", "full_attention", "qwen2", "gemma3_text", "ticket_llama"]
MORE = {
    "rope_parameters": {"rope_type": "llama3", "factor": 2.0, "full_attention": {}},
    "max_window_layers": 1,
    "use_sliding_window": True,
    "sliding_window_pattern": 2,
    "layer_types": ["full_attention"],
    "ticket": {"first": 1, "last": 0},
    "hidden_act": "silu",
}
KNOWN = {
    "llama": [{"hidden_act": ["silu"]}, {"rms_norm_eps": math.inf}, {"num_hidden_layers": 10**9}],
    "gemma3": [{"rope_parameters": {"full_attention": 5}}],
    "qwen2": [{"use_sliding_window": True, "max_window_layers": "28", "sliding_window": 4}],
}
DTYPES = ["F8_E4M3", "F8_E5M2", "I32", "BOOL", "F64", "F16", "BF16", "U8", "C64", "F4", "", "x", 7, None]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def sharded(base, tmp_path_factory):
    folder = copy(base, tmp_path_factory.mktemp("models") / "sharded")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in files.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {key: file for file, keys in files.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_model_configs(family):
    values = SCALARS | st.sampled_from(WORDS) | st.lists(SCALARS, max_size=3)
    whole = {**MORE, **to_hf(random_config(family))}

    def read(tree) -> None:
        config = from_hf(tree)
        assert 1 <= config.num_layers <= 4096 and math.isfinite(config.norm_eps)
        assert all(0 <= token < config.vocab_size for token in config.eos_ids)
        json.dumps(to_hf(config))

    one = st.sampled_from(sorted({*whole, *MORE}))
    inputs = changed(whole, values) | st.dictionaries(one, values, max_size=3).map(lambda changes: whole | changes)
    known = [to_hf(random_config(family)) | changes for changes in KNOWN.get(family, ())]
    fuzz(read, inputs.filter(lambda tree: isinstance(tree, dict)), *known)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_model_built_from_what_its_folder_says(name, base, tmp_path):
    folder = copy(base, tmp_path / "base")
    tree = json.loads((folder / name).read_text())

    def read(content: bytes) -> None:
        (folder / name).write_bytes(content)
        load_model(folder, dtype=jnp.float32)

    fuzz(
        read,
        changed(tree).map(as_json) | damaged((folder / name).read_bytes()),
        b'{"eos_token_id": 264}',
        b'{"eos_token_id": [[2]]}',
        b'{"eos_token_id": -1}',
    )


def test_the_header_of_safetensors(base, tmp_path):
    folder = copy(base, tmp_path / "base")
    whole = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def read(content: bytes) -> None:
        (folder / "model.safetensors").write_bytes(content)
        load_model(folder, dtype=jnp.float32)

    def written(tree) -> bytes:
        text = as_json(tree)
        return struct.pack("<Q", len(text)) + text + body

    values = SCALARS | st.sampled_from(DTYPES) | st.lists(st.sampled_from(NUMBERS), max_size=3)
    one = sorted(header)[1]
    known = [written({**header, one: {**header[one], "dtype": dtype}}) for dtype in DTYPES]
    fuzz(read, changed(header, values).map(written) | damaged(whole), *known)


def test_the_index_of_safetensors(sharded, tmp_path):
    folder = copy(sharded, tmp_path / "base")
    path = folder / "model.safetensors.index.json"
    tree = json.loads(path.read_text())

    def read(content: bytes) -> None:
        path.write_bytes(content)
        load_model(folder, dtype=jnp.float32)

    names = SCALARS | st.sampled_from(["a.safetensors", "../x", "config.json", "a.safetensors/b", "."])
    fuzz(read, changed(tree, names).map(as_json) | damaged(path.read_bytes()))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_weights_that_are_no_numbers(dtype, base, tmp_path):
    folder = copy(base, tmp_path / "base")
    tensors = {
        key: value.astype({"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}[dtype])
        for key, value in load_file(folder / "model.safetensors").items()
    }

    def read(change) -> None:
        key, value = change
        save_file({**tensors, key: np.full_like(tensors[key], value)}, folder / "model.safetensors")
        load_model(folder, dtype=jnp.float32)

    fuzz(read, st.tuples(st.sampled_from(sorted(tensors)), st.sampled_from([np.nan, np.inf, -np.inf, 0, 1])))


def read_gguf(path) -> None:
    read_model_config(path)
    load_tokenizer(path)
    load_model(path, dtype=jnp.float32)


def test_the_bytes_of_gguf(base, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", base, gguf_metadata())
    whole = path.read_bytes()
    head = gguf.GGUFReader(path).data_offset

    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_gguf(path)

    fuzz(read, damaged(whole[:head]).map(lambda head_: head_ + whole[head:]) | damaged(whole))


def test_the_metadata_of_gguf(base, tmp_path):
    path = tmp_path / "tiny.gguf"
    whole = gguf_metadata()
    numbers = st.integers(-(2**31), 2**31 - 1) | st.floats(width=32) | st.booleans() | st.text(max_size=5)
    values = (
        numbers
        | st.lists(st.integers(-9, 9), min_size=1, max_size=4)
        | st.lists(st.text(max_size=3), min_size=1, max_size=4)
    )
    more = st.sampled_from(
        [
            *whole,
            "tokenizer.ggml.scores",
            "tokenizer.ggml.bos_token_id",
            "tokenizer.ggml.add_bos_token",
            "llama.rope.scaling.type",
            "llama.rope.scaling.factor",
            "llama.expert_count",
            "llama.attention.sliding_window",
            "split.count",
            "general.architecture",
            "llama.rope.dimension_count",
        ]
    )

    def read(changes) -> None:
        try:
            write_gguf(path, base, {key: value for key, value in (whole | changes).items() if value != []})
        except (ValueError, struct.error):
            return
        read_gguf(path)

    fuzz(
        read,
        st.dictionaries(more, values, min_size=1, max_size=3),
        {"tokenizer.ggml.model": "llama"},
        {"llama.rope.scaling.type": 5},
    )
