"""An adapter's folder that holds no adapter is refused in one line; tests/fuzz feeds it with everything else."""

import json

import numpy as np
import pytest
from adapters import random_adapter
from safetensors.numpy import load_file, save_file

from altojax.adapters.peft_files import export_adapter, read_adapter
from jaxlm.families.registry import random_config
from jaxrun.process.errors import UserError

LLAMA = random_config("llama")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    spec, adapter = random_adapter(LLAMA, ["q_proj"])
    export_adapter(folder, spec, adapter, LLAMA, None, {})
    return folder


def written(exported, folder, fields, tensors=None):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(
        json.dumps({**json.loads((exported / "adapter_config.json").read_text()), **fields})
    )
    save_file(tensors or load_file(exported / "adapter_model.safetensors"), folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("content", ["", "[]", "{", "7", '{"r": 1e999}', "[" * 5000, "\ud800"])
def test_what_is_no_config_is_one_line(exported, tmp_path, content):
    folder = written(exported, tmp_path / "adapter", {})
    (folder / "adapter_config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        read_adapter(folder, LLAMA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: np.full_like(a, np.nan), "not finite"),
        (lambda a: np.full_like(a, np.inf), "not finite"),
        (lambda a: a.astype(np.int32), "is I32"),
        (lambda a: a.astype(np.float64), "is F64"),
    ],
)
def test_numbers_that_no_training_leaves_are_refused_by_name(exported, tmp_path, change, message):
    tensors = load_file(exported / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    with pytest.raises(UserError, match=f"{name}.*{message}"):
        read_adapter(written(exported, tmp_path / "adapter", {}, tensors | {name: change(tensors[name])}), LLAMA)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 64, (2**60).to_bytes(8, "little") + b"{}"])
def test_weights_that_are_no_safetensors_are_one_line(exported, tmp_path, content):
    folder = written(exported, tmp_path / "adapter", {})
    (folder / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        read_adapter(folder, LLAMA)
