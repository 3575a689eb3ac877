"""Checkpoints whose matrices are packed: their sections of config.json, descriptions, tensors and blocks of GGUF."""

import json
import struct

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import NUMBERS, SCALARS, as_json, changed, damaged
from fuzzing import fuzz
from gguf_files import write_gguf
from hypothesis import strategies as st
from quantised_folders import FORMATS, quantised, tensors_of
from safetensors.numpy import save_file
from tiny_models import tiny

from jaxlm.families.names import weights
from jaxlm.families.registry import random_config
from jaxlm.files.gguf.weights import GGUFFile
from jaxlm.files.hf import save_model
from jaxlm.files.hf_folder import HFFolder
from jaxlm.files.weights import read_forms
from jaxlm.quantised.formats import Keep

KEY = "model.layers.1.mlp.down_proj."
DTYPES = (np.float32, np.float16, jnp.bfloat16, np.uint8, np.int8, np.int32, np.int64, np.bool_, jnp.float8_e4m3fn)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "m"
    save_model(folder, random_config("llama"), tiny("llama"), dtype=jnp.float32)
    return folder


@pytest.fixture
def folders(plain, tmp_path):
    """A folder in each format."""
    for name in FORMATS:
        quantised(plain, tmp_path / name, name)
    return tmp_path


def read_packed(path) -> None:
    """Reads the matrices of the last layer as a model is loaded, without a device."""
    forms = read_forms(path, Keep.ALL)
    opened = GGUFFile(path) if path.suffix == ".gguf" else HFFolder(path)
    for weight in weights(opened.config):
        if weight.path in forms:
            form, found = forms[weight.path], opened.packed(weight, 1)
            shapes = [[(one.shape[-2:], one.dtype) for one in jax.tree.leaves(tree)] for tree in (form, found)]
            assert shapes[0] == shapes[1]


def fuzz_each(read, damages, folders, *known) -> None:
    """Feeds damages (folder, plain data) -> inputs of folders of every format."""
    inputs = st.sampled_from(sorted(FORMATS)).flatmap(lambda name: st.tuples(st.just(name), damages(folders / name)))
    fuzz(lambda one: read(folders / one[0], one[1]), inputs, *known)


def test_what_config_json_says_of_it(folders):
    trees = {name: json.loads((folders / name / "config.json").read_text()) for name in FORMATS}
    words = ["fp8", "gptq", "awq", "bitsandbytes", "compressed-tensors", "tensor", "block", "group", "channel"]
    values = SCALARS | st.sampled_from(words) | st.just([1, 10**30])

    def read(folder, section) -> None:
        (folder / "config.json").write_bytes(as_json(trees[folder.name] | {"quantization_config": section}))
        read_packed(folder)

    section = trees["fp8"]["quantization_config"]
    known = [("fp8", section | {"weight_block_size": block}) for block in ([1, 10**30], [64, 10**12], [7, 5])]
    fuzz_each(read, lambda folder: changed(trees[folder.name]["quantization_config"], values), folders, *known)


def test_tensors_of_a_matrix(folders):
    tensors = {name: tensors_of(folders / name) for name in FORMATS}

    def read(folder, changes) -> None:
        held = dict(tensors[folder.name])
        for key, (shape, dtype) in changes.items():
            own = held.pop(key)
            if shape is not None:
                held[key] = np.zeros(own.shape if shape == "own" else shape, own.dtype if dtype is None else dtype)
        save_file(held, folder / "model.safetensors")
        read_packed(folder)

    shapes = st.none() | st.just("own") | st.lists(st.sampled_from((0, 1, 2, 8, 64, 96)), max_size=3).map(tuple)
    change = st.tuples(shapes, st.none() | st.sampled_from(DTYPES))

    def damages(folder):
        own = sorted(key for key in tensors[folder.name] if key.startswith(KEY))
        return st.dictionaries(st.sampled_from(own), change, min_size=1, max_size=2)

    known = [(name, {key: (None, None)}) for name, held in tensors.items() for key in held if key.startswith(KEY)]
    fuzz_each(read, damages, folders, *known)


def test_the_description_of_bitsandbytes(folders):
    path = folders / "nf4" / "model.safetensors"
    whole, key = tensors_of(path.parent), f"{KEY}weight.quant_state.bitsandbytes__nf4"
    state = whole[key].tobytes()

    def read(content: bytes) -> None:
        save_file(whole | {key: np.frombuffer(content, np.uint8)}, path)
        read_packed(path.parent)

    tree = json.loads(state)
    known = [{"nested_blocksize": 2**40}, {"nested_blocksize": 2**80}, {"nested_offset": 10**400}, {"blocksize": True}]
    known += [{"shape": [2**40, 2**40]}, {"shape": [1, 64 * 96]}, {"shape": [10**30, 64]}]
    inputs = changed(tree, SCALARS | st.sampled_from(NUMBERS)).map(as_json) | damaged(state)
    fuzz(read, inputs, *(as_json(tree | one) for one in known))


def test_the_header_of_packed_tensors(folders):
    files = {name: (folders / name / "model.safetensors").read_bytes() for name in FORMATS}

    def split(name):
        (length,) = struct.unpack("<Q", files[name][:8])
        return json.loads(files[name][8 : 8 + length]), files[name][8 + length :]

    def read(folder, tree) -> None:
        header, body = split(folder.name)
        text = as_json({**{key: value for key, value in header.items() if not key.startswith(KEY)}, **tree})
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
        read_packed(folder)

    values = st.sampled_from(("F8_E4M3", "F8_E5M2", "I32", "U8", "F16", "BF16", "I64")) | st.sampled_from(NUMBERS)

    def damages(folder):
        own = {key: value for key, value in split(folder.name)[0].items() if key.startswith(KEY)}
        return changed(own, values).filter(lambda tree: isinstance(tree, dict))

    fuzz_each(read, damages, folders)


@pytest.mark.parametrize("kind", ("Q8_0", "Q4_1"))
def test_blocks_of_gguf(kind, plain, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, plain, random_config("llama"), gguf.GGMLQuantizationType[kind])
    whole = path.read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_packed(path)

    fuzz(read, damaged(whole))
