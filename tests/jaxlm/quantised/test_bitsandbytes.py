"""Checkpoints of bitsandbytes stay packed, to the bit what it dequantises; damaged ones are refused in one line."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlm.devices.frozen_weight import dense
from jaxlm.devices.mesh import make_layout
from jaxlm.files.weights import load_model, read_forms, read_model_config
from jaxlm.quantised import nested_scales
from jaxlm.quantised.formats import PACKS, Keep, bytes_of, names_of
from jaxlm.quantised.nf4 import TableWeight
from jaxrun.process.errors import UserError

DOUBLED = ("nf4", "nf4_double")
NAMES = ("nf4-once", "nf4-twice", "fp4-once", "fp4-twice")
KEY = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def made(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    reference("make_quantised.py", folder)
    return folder


def load(folder, pack=Keep.RELEASED, **options):
    return load_model(folder, dtype=jnp.float32, pack=pack, **options)[1]


def down_proj(model):
    return np.asarray(dense(model.layers.mlp.down_proj.kernel.get_value(), jnp.float32)[1]).T


@pytest.mark.parametrize("name", NAMES)
def test_values_are_bitsandbytes_to_the_bit(made, name):
    model = load(made / name)
    kept = model.layers.mlp.down_proj.kernel.get_value()
    assert isinstance(kept, TableWeight) and kept.values.dtype == jnp.uint8 and kept.code == name[:3]
    np.testing.assert_array_equal(down_proj(model), np.load(made / f"{name}.npy"))
    assert bytes_of(kept) == kept.values.size + 4 * kept.scale.size == 2 * 256 * 128 * 4.5 / 8


def test_what_is_packed_as_it_is_loaded_is_what_bitsandbytes_packs(made):
    ours, theirs = (load(made / name, pack) for name, pack in (("base", PACKS["nf4"]), ("nf4-once", Keep.RELEASED)))
    one, other = (model.layers.mlp.up_proj.kernel.get_value() for model in (ours, theirs))
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.scale, other.scale)


def test_scales_are_packed_by_bitsandbytes_table_about_their_mean(made):
    held = load_file(made / "nf4-twice" / "model.safetensors")
    np.testing.assert_array_equal(nested_scales.TABLE, held[f"{KEY}.nested_quant_map"])
    once, twice = (load(made / "base", PACKS[name]).layers.mlp.down_proj.kernel.get_value() for name in DOUBLED)
    assert names_of({"": twice}) == "nf4_double"
    np.testing.assert_array_equal(twice.values, once.values)
    np.testing.assert_allclose(twice.scale.mean[:, 0, 0], once.scale.mean(axis=(1, 2)), rtol=1e-6)
    ours, exact = (np.asarray(dense(one, jnp.float32)[1]).T for one in (twice, once))
    off, off_theirs = (np.abs(one - exact).max() for one in (ours, np.load(made / "nf4-twice.npy")))
    assert 0 < off <= 2 * off_theirs


def test_forms_are_known_before_a_weight_is_read_and_without_keeping_matrices_are_dense(made):
    forms = read_forms(made / "fp4-twice", Keep.RELEASED)
    assert names_of(forms) == "fp4" and len(forms) == 7
    model = load(made / "fp4-twice")
    for path, form in forms.items():
        kernel = getattr(getattr(model.layers, path.split(".")[1]), path.split(".")[2]).kernel.get_value()
        assert jax.tree.map(lambda one: (one.shape, one.dtype), kernel) == jax.tree.map(
            lambda one: (one.shape, one.dtype), form
        )
    plain = load(made / "fp4-twice", None)
    np.testing.assert_array_equal(down_proj(plain), down_proj(model))
    assert isinstance(plain.layers.mlp.down_proj.kernel.get_value(), jax.Array)
    again = load(made / "fp4-twice", PACKS["int8"]).layers.mlp.down_proj.kernel.get_value()
    assert again.values.dtype == jnp.int8


def test_devices_take_their_parts(made):
    layout = make_layout({"adapter": 2}, read_model_config(made / "nf4-twice"))
    model = load(made / "nf4-twice", placement=layout.placement)
    kernel = model.layers.mlp.down_proj.kernel.get_value()
    assert all(2 * leaf.addressable_shards[0].data.size == leaf.size for leaf in jax.tree.leaves(kernel))
    np.testing.assert_array_equal(down_proj(model), down_proj(load(made / "nf4-twice")))


def test_a_matrix_of_which_layers_are_stored_plainly_is_dense_and_said_to_be(made, tmp_path, capsys):
    folder = changed(
        made, tmp_path, lambda held: held | {KEY: load_file(made / "base" / "model.safetensors")[KEY]}, KEY
    )
    model = load(folder)
    assert (
        "layers.mlp.down_proj.kernel is dense, since its layers are stored in different forms"
        in capsys.readouterr().err
    )
    np.testing.assert_array_equal(down_proj(model), load_file(made / "base" / "model.safetensors")[KEY])
    first = dense(load(made / "nf4-twice").layers.mlp.down_proj.kernel.get_value(), jnp.float32)[0]
    np.testing.assert_array_equal(model.layers.mlp.down_proj.kernel.get_value()[0], first)


def changed(made, tmp_path, change, without=""):
    shutil.copytree(made / "nf4-twice", tmp_path / "m")
    held = load_file(tmp_path / "m" / "model.safetensors")
    kept = {key: value for key, value in held.items() if not without or not key.startswith(f"{without}.")}
    save_file(change(kept), tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "m"


def state(**said):
    given = {"quant_type": "nf4", "blocksize": 64, "shape": [128, 256], "nested_blocksize": 256, "nested_offset": 0.1}
    return np.frombuffer(json.dumps(given | said).encode(), np.uint8)


STATE = f"{KEY}.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({KEY: np.zeros((9, 1), np.uint8)}, r"its values is uint8 \[9, 1\], expected 16,384 of uint8"),
        ({f"{KEY}.absmax": np.zeros(384, np.float32)}, r"its absmax is float32 \[384\], expected 512 of uint8"),
        ({f"{KEY}.quant_map": np.zeros(16, np.float32)}, "its quant_map is not nf4's"),
        ({f"{KEY}.nested_absmax": np.zeros(3, np.float32)}, "its nested_absmax is"),
        ({STATE: np.frombuffer(b"[[[", np.uint8)}, "is no JSON"),
        ({STATE: np.frombuffer(b"[]", np.uint8)}, "expected quant_type, blocksize and shape"),
        ({STATE: state(shape=[128, -1])}, "expected quant_type, blocksize and shape"),
        ({STATE: state(blocksize=7)}, "expected quant_type, blocksize and shape"),
        ({STATE: state(nested_offset="nan")}, "expected quant_type, blocksize and shape"),
        ({STATE: state(blocksize=512)}, "256 inputs in blocks of 512, expected a multiple"),
        ({STATE: state(shape=[256, 128])}, r"has shape \(128, 256\), expected \(256, 128\) by its config"),
        ({f"{KEY}.mystery": np.zeros(1, np.float32)}, "mystery is unexpected"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(made, tmp_path, changes, said):
    folder = changed(made, tmp_path, lambda held: held | changes)
    with pytest.raises(UserError, match=said) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_eight_bits_of_bitsandbytes_are_refused_by_name(made, tmp_path):
    folder = changed(made, tmp_path, lambda held: held)
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] |= {"load_in_4bit": False, "_load_in_4bit": False, "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="quantization_config is"):
        load(folder)
