"""Whatever an adapter's folder holds, reading it ends in an adapter or in one line."""

import json

import numpy as np
import pytest
from adapters import random_adapter
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from altojax.adapters.peft_config import _KINDS, _UNSET
from altojax.adapters.peft_files import export_adapter, read_adapter
from jaxlm.families.registry import random_config
from jaxrun.process.errors import UserError

LLAMA = random_config("llama")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.sampled_from([10**9, 10**400])
    | st.floats()
    | st.sampled_from(["", "q_proj", "(", r"([a-z.0]|[a-z.0][a-z.0])+$", "LORA", "\ud800", "x" * 5000])
)
ANYTHING = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)


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


@given(changes=st.dictionaries(st.sampled_from([*_KINDS, *_UNSET, "peft_type"]), ANYTHING, min_size=1, max_size=3))
@example(changes={"layers_to_transform": "all", "layers_pattern": "("})
@example(changes={"target_modules": [7]})
@example(changes={"lora_alpha": True})
@example(changes={"lora_alpha": float("inf")})
def test_a_config_is_read_or_refused_in_one_line(exported, tmp_path_factory, changes):
    folder = written(exported, tmp_path_factory.getbasetemp() / "changed", changes)
    try:
        spec, _ = read_adapter(folder, LLAMA)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return
    assert np.isfinite(spec.scale)


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
