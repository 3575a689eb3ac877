"""Checkpoints in fp8 and in groups of four bits stay packed and stand for the numbers that their tools define."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import tiny

from jaxlm.families.registry import random_config
from jaxlm.files.hf import save_model
from jaxlm.files.weights import load_model, read_forms
from jaxlm.models.functional import weights_by_path
from jaxlm.quantised.formats import Keep, names_of
from jaxrun.process.errors import UserError

GROUP = 16
KEY = "model.layers.1.mlp.down_proj.weight"
F8 = ml_dtypes.float8_e4m3fn


def int32(numbers, axis, order=range(8)):
    """Packs numbers of four bits eight to an int32 along an axis; `order` has the places from the lowest bits up."""
    apart = np.moveaxis(numbers, axis, -1).astype(np.uint32)
    apart = apart.reshape(*apart.shape[:-1], -1, 8)
    found = sum(apart[..., place] << np.uint32(4 * at) for at, place in enumerate(order))
    return np.ascontiguousarray(np.moveaxis(found.astype(np.uint32).view(np.int32), -1, axis))


def grouped(random, inputs, outputs):
    """Numbers [in, out], zero points and scales [group, out], and the matrix [out, in] that they are."""
    numbers = random.integers(0, 16, (inputs, outputs))
    zero = random.integers(1, 16, (inputs // GROUP, outputs))
    scale = random.uniform(0.01, 0.1, zero.shape).astype(np.float16)
    spread = [np.repeat(one, GROUP, axis=0).astype(np.float32) for one in (zero, scale)]
    return numbers, zero, scale, ((numbers - spread[0]) * spread[1]).T.astype(np.float32)


def gptq(random, of, outputs, inputs, less=1):
    numbers, zero, scale, dense = grouped(random, inputs, outputs)
    tensors = {"qweight": int32(numbers, 0), "qzeros": int32(zero - less, 1), "scales": scale}
    tensors["g_idx"] = (np.arange(inputs) // GROUP).astype(np.int32)
    return {of + name: one for name, one in tensors.items()}, dense


def gptq_v2(random, of, outputs, inputs):
    return gptq(random, of, outputs, inputs, less=0)


def awq(random, of, outputs, inputs):
    numbers, zero, scale, dense = grouped(random, inputs, outputs)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {"qweight": int32(numbers, 1, order), "qzeros": int32(zero, 1, order), "scales": scale}
    return {of + name: one for name, one in tensors.items()}, dense


def pack_quantized(random, of, outputs, inputs):
    numbers, zero, scale, dense = grouped(random, inputs, outputs)
    tensors = {"weight_packed": int32(numbers.T, 1), "weight_zero_point": int32(zero.T, 0)}
    tensors |= {"weight_scale": np.ascontiguousarray(scale.T), "weight_shape": np.array([outputs, inputs], np.int64)}
    return {of + name: one for name, one in tensors.items()}, dense


def pack_symmetric(random, of, outputs, inputs):
    numbers, _, scale, _ = grouped(random, inputs, outputs)
    tensors = {"weight_packed": int32(numbers.T, 1), "weight_scale": np.ascontiguousarray(scale.T)}
    dense = (numbers - 8).T * np.repeat(scale.T, GROUP, axis=1).astype(np.float32)
    return {of + name: one for name, one in tensors.items()}, dense.astype(np.float32)


def eight(random, outputs, inputs):
    return random.normal(0, 30, (outputs, inputs)).astype(F8)


def fp8_blocks(random, of, outputs, inputs):
    values, scale = eight(random, outputs, inputs), random.uniform(0.01, 0.1, (-(-outputs // 48), -(-inputs // 32)))
    scale = scale.astype(np.float32)
    spread = np.repeat(np.repeat(scale, 48, axis=0), 32, axis=1)[:outputs, :inputs]
    return {f"{of}weight": values, f"{of}weight_scale_inv": scale}, values.astype(np.float32) * spread


def fp8_rows(random, of, outputs, inputs):
    values, scale = eight(random, outputs, inputs), random.uniform(0.01, 0.1, (outputs, 1)).astype(ml_dtypes.bfloat16)
    return {f"{of}weight": values, f"{of}weight_scale": scale}, values.astype(np.float32) * scale.astype(np.float32)


def fp8_whole(random, of, outputs, inputs):
    values, scale = eight(random, outputs, inputs), np.array([0.03], np.float32)
    return {f"{of}weight": values, f"{of}weight_scale": scale}, values.astype(np.float32) * scale


def compressed(format, **weights):
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": {"weights": weights}}}


INT4 = {"type": "int", "num_bits": 4, "strategy": "group"}
FLOAT8 = {"type": "float", "num_bits": 8}
FORMATS = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}),
    "gptq-v2": (gptq_v2, {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "version": "gemm"}),
    "int4": (pack_quantized, compressed("pack-quantized", **INT4)),
    "int4-symmetric": (pack_symmetric, compressed("pack-quantized", **INT4)),
    "fp8": (fp8_blocks, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [48, 32]}),
    "fp8-rows": (fp8_rows, compressed("float-quantized", **FLOAT8, strategy="channel")),
    "fp8-whole": (fp8_whole, compressed("float-quantized", **FLOAT8, strategy="tensor")),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "m"
    save_model(folder, random_config("llama"), tiny("llama"), dtype=jnp.float32)
    return folder


def quantised(plain, folder, name, **changes):
    """A folder whose projections are in a format, and the matrices that they stand for."""
    make, section = FORMATS[name]
    shutil.copytree(plain, folder)
    random, held, dense = np.random.default_rng(0), {}, {}
    for key, value in load_file(plain / "model.safetensors").items():
        if key.endswith("_proj.weight"):
            tensors, dense[key] = make(random, key.removesuffix("weight"), *value.shape)
            held |= tensors
        else:
            held[key] = value
    save_file(held | changes, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return dense


@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_stays_packed_and_stands_for_what_its_tool_defines(plain, tmp_path, name):
    dense = quantised(plain, tmp_path / "m", name)
    forms = read_forms(tmp_path / "m", Keep.RELEASED)
    assert names_of(forms) == name.partition("-")[0] and len(forms) == 7
    _, model = load_model(tmp_path / "m", dtype=jnp.float32, pack=Keep.RELEASED)
    kept = model.layers.mlp.down_proj.kernel.get_value()
    form = forms["layers.mlp.down_proj.kernel"]
    assert jax.tree.map(lambda one: (one.shape, one.dtype), kept) == jax.tree.map(
        lambda one: (one.shape, one.dtype), form
    )
    assert jax.tree.leaves(kept)[0].dtype.itemsize == 1
    local = jax.tree.map(lambda one: one[:, :1, :1], kept)
    assert local.along("in", "out") == kept.along("in", "out"), "devices may hold one group each"
    found = weights_by_path(model, jnp.float32)
    for key, value in dense.items():
        _, _, layer, *path, _ = key.split(".")
        np.testing.assert_array_equal(found[f"layers.{'.'.join(path)}.kernel"][int(layer)], value.T)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("gptq", {"g_idx": np.zeros(64, np.int32)}, "its g_idx mixes groups"),
        ("gptq", {"qzeros": np.zeros((2, 8), np.int32)}, "its zero points are"),
        ("gptq", {"scales": np.zeros((7, 64), np.float16)}, "its scales are float16"),
        ("awq", {"qweight": np.zeros((96, 8), np.float32)}, "is float32"),
        ("fp8", {"weight_scale_inv": np.zeros((9, 9), np.float32)}, "its weight_scale_inv is float32"),
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
        {"quant_method": "hqq"},
    ],
)
def test_other_settings_are_refused_by_name(plain, tmp_path, section):
    quantised(plain, tmp_path / "m", "gptq")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    with pytest.raises(UserError, match=r"quantization_config is .*other values are not implemented"):
        load_model(tmp_path / "m", dtype=jnp.float32, pack=Keep.RELEASED)
