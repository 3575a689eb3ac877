"""Checkpoints in fp8 and in groups of four bits stay packed and stand for the numbers that their tools define."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantised_folders import FORMATS, quantised, tensors_of
from safetensors.numpy import load_file, save_file
from tiny_models import tiny

from jaxlm.devices.frozen_weight import map_arrays
from jaxlm.families.registry import random_config
from jaxlm.files.hf import save_model
from jaxlm.files.weights import load_model, read_forms
from jaxlm.models.functional import weights_by_path
from jaxlm.quantised.formats import Keep, names_of
from jaxrun.process.errors import UserError

KEY = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "m"
    save_model(folder, random_config("llama"), tiny("llama"), dtype=jnp.float32)
    return folder


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"fp8-128"}))
def test_a_checkpoint_stays_packed_and_stands_for_what_its_tool_defines(plain, tmp_path, name):
    dense = quantised(plain, tmp_path / "m", name)
    forms = read_forms(tmp_path / "m", Keep.RELEASED)
    kind = name.partition("-")[0]
    assert names_of(forms) == ("pack-quantized" if kind == "int4" else kind) and len(forms) == 7
    _, model = load_model(tmp_path / "m", dtype=jnp.float32, pack=Keep.RELEASED)
    kept = model.layers.mlp.down_proj.kernel.get_value()
    form = forms["layers.mlp.down_proj.kernel"]
    assert jax.tree.map(lambda one: (one.shape, one.dtype), kept) == jax.tree.map(
        lambda one: (one.shape, one.dtype), form
    )
    assert jax.tree.leaves(kept)[0].dtype.itemsize == 1
    local = jax.tree.map(lambda one: one[:, :1, :1], kept)
    assert local.along("in", "out") == kept.along("in", "out"), "devices may hold one group each"
    second = map_arrays(lambda one, along: one[..., one.shape[-1] // 2 :] if along[1] else one, kept, "in", "out")
    np.testing.assert_array_equal(second.dense(jnp.float32), kept.dense(jnp.float32)[..., 32:])
    found = weights_by_path(model, jnp.float32)
    for key, value in dense.items():
        _, _, layer, *path, _ = key.split(".")
        np.testing.assert_array_equal(found[f"layers.{'.'.join(path)}.kernel"][int(layer)], value.T)


def test_experts_stay_packed_too_each_as_its_tool_defines(tmp_path):
    save_model(tmp_path / "plain", random_config("qwen3_moe"), tiny("qwen3_moe"), dtype=jnp.float32)
    dense = quantised(tmp_path / "plain", tmp_path / "m", "int4")
    _, model = load_model(tmp_path / "m", dtype=jnp.float32, pack=Keep.RELEASED)
    kept = model.layers.mlp.experts.up_proj.kernel.get_value()
    assert kept.kind == "pack-quantized" and kept.values.dtype == jnp.uint8
    found = weights_by_path(model, jnp.float32)
    for name in ("gate_proj", "up_proj", "down_proj"):
        own = {key: value for key, value in dense.items() if f".experts.1.{name}" in key}
        for key, value in own.items():
            layer = int(key.split(".")[2])
            np.testing.assert_array_equal(found[f"layers.mlp.experts.{name}.kernel"][layer, 1], value.T)
    of = "model.layers.0.mlp.experts.1.up_proj.weight"
    held = {name: one for name, one in tensors_of(tmp_path / "m").items() if not name.startswith(f"{of}_")}
    held[of] = load_file(tmp_path / "plain" / "model.safetensors")[of]
    save_file(held, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"experts.1.up_proj.weight: is stored plainly, expected as those of other exp"):
        load_model(tmp_path / "m", dtype=jnp.float32, pack=Keep.RELEASED)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("gptq", {"g_idx": np.zeros(64, np.int32)}, "its g_idx mixes groups"),
        ("gptq", {"qzeros": np.zeros((2, 8), np.int32)}, "its zero points are"),
        ("gptq", {"scales": np.zeros((7, 64), np.float16)}, "its scales are float16"),
        ("awq", {"qweight": np.zeros((96, 8), np.float32)}, "is float32"),
        ("fp8", {"weight_scale_inv": np.zeros((9, 9), np.float32)}, "its weight_scale_inv is float32"),
        ("gptq", {"scales": np.full((6, 64), np.nan, np.float16)}, "is not finite as it is kept"),
        ("fp8", {"weight": np.zeros((64, 64), np.float16)}, "expected a matrix of float8_e4m3fn"),
    ],
)
def test_a_damaged_matrix_is_refused_in_one_line(plain, tmp_path, name, changes, said):
    of = KEY.removesuffix("weight")
    quantised(plain, tmp_path / "m", name, **{of + part: value for part, value in changes.items()})
    with pytest.raises(UserError, match=said) as caught:
        load_model(tmp_path / "m", dtype=jnp.float32, pack=Keep.RELEASED)
    assert "\n" not in str(caught.value) and of in str(caught.value)


@pytest.mark.parametrize(
    "section",
    [
        {"quant_method": "gptq", "bits": 8},
        {"quant_method": "awq", "bits": 4, "version": "marlin"},
        {"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [48, 32]},
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
        FORMATS["int4"][1] | {"transform_config": {"config_groups": {"R4": {"type": "hadamard"}}}},
        {"quant_method": "hqq"},
    ],
)
def test_other_settings_are_refused_by_name(plain, tmp_path, section):
    quantised(plain, tmp_path / "m", "gptq")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    with pytest.raises(UserError, match=r"quantization_config is .*other values are not implemented"):
        load_model(tmp_path / "m", dtype=jnp.float32, pack=Keep.RELEASED)
