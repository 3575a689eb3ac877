"""Experts stored in MXFP4 are read to the bit, in parts too, and damaged ones are refused in one line."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import tiny, variables

from jaxlm.families.names import weights
from jaxlm.families.registry import random_config
from jaxlm.files import stored
from jaxlm.files.hf import save_model
from jaxlm.files.hf_config import to_hf
from jaxlm.files.hf_folder import HFFolder
from jaxlm.files.stored import whole
from jaxlm.files.weights import load_model
from jaxrun.process.errors import UserError

KEY = "model.layers.1.mlp.experts.down_proj"
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def folder_of(tmp_path, **changed):
    """A tiny gpt-oss, of which one matrix of every expert is packed."""
    save_model(tmp_path / "m", random_config("gpt_oss"), tiny("gpt_oss"), dtype=jnp.float32)
    path = tmp_path / "m" / "model.safetensors"
    held = load_file(path)
    experts, inputs, outputs = held.pop(KEY).shape
    random = np.random.default_rng(0)
    packed = {
        "blocks": random.integers(0, 256, (experts, outputs, inputs // 32, 16)).astype(np.uint8),
        "scales": random.integers(120, 130, (experts, outputs, inputs // 32)).astype(np.uint8),
    } | changed
    save_file(held | {f"{KEY}_{name}": value for name, value in packed.items()}, path, metadata={"format": "pt"})
    return tmp_path / "m", packed


def test_a_byte_holds_two_numbers_the_lower_half_first_times_their_power_of_two(tmp_path, monkeypatch):
    folder, packed = folder_of(tmp_path)
    monkeypatch.setattr(stored, "PART_SIZE", 64 * 32)
    found = variables(load_model(folder, dtype=jnp.float32)[1])["layers.mlp.experts.down_proj.kernel"][1]
    halves = np.stack((packed["blocks"] % 16, packed["blocks"] // 16), axis=-1).reshape(*packed["scales"].shape, 32)
    numbers = np.where(halves < 8, 1, -1) * VALUES[halves % 8] * 2.0 ** (packed["scales"][..., None] - 127.0)
    np.testing.assert_array_equal(found, numbers.reshape(*found.swapaxes(-1, -2).shape).swapaxes(-1, -2))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"scales": np.zeros((4, 64, 2), np.uint8)},
            r"of shape \(4, 64, 1, 16\), beside scales of \(4, 64, 2\)",
        ),
        ({"scales": np.zeros((4, 64, 1), np.float32)}, f"weight {KEY}_scales is F32, expected one of U8"),
        ({"scales": np.zeros((4, 32, 1), np.uint8), "blocks": np.zeros((4, 32, 1, 16), np.uint8)}, "has shape"),
    ],
)
def test_a_damaged_matrix_is_refused_in_one_line(changed, said, tmp_path):
    with pytest.raises(UserError, match=said):
        load_model(folder_of(tmp_path, **changed)[0], dtype=jnp.float32)


def test_what_is_no_matrix_of_experts_is_not_read_from_blocks(tmp_path):
    folder, _ = folder_of(tmp_path)
    held = load_file(folder / "model.safetensors")
    del held["model.norm.weight"]
    packed = {"blocks": np.zeros((2, 16), np.uint8), "scales": np.zeros(2, np.uint8)}
    held |= {f"model.norm.weight_{name}": value for name, value in packed.items()}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weight model\.norm\.weight is missing"):
        load_model(folder, dtype=jnp.float32)


def test_experts_stored_in_two_kinds_of_16_bits_are_read(tmp_path):
    config = random_config("mixtral")
    weight = next(one for one in weights(config) if one.path == "layers.mlp.experts.gate_proj.kernel")
    (tmp_path / "config.json").write_text(json.dumps(to_hf(config)))
    held = {key: np.full(weight.shape[:0:-1], 0.5, jnp.bfloat16) for key in weight.keys(1)}
    held[weight.keys(1)[2]] = np.full(weight.shape[:0:-1], 0.25, np.float16)
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = HFFolder(tmp_path).read(weight, 1, whole((weight.experts, *weight.shape[:0:-1])))
    assert [one.min() for one in found] == [one.max() for one in found] == [0.5, 0.5, 0.25, 0.5]
