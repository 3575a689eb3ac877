"""Weights beyond what a dtype holds are refused by name, in writing and in loading; nothing becomes infinite unsaid."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny_models import tiny

from jaxlm.families.names import weights
from jaxlm.families.registry import random_config
from jaxlm.files.hf import check_range, save_model
from jaxlm.files.weights import load_model
from jaxrun.process.errors import UserError

KEY = "model.layers.1.mlp.up_proj.weight"
PATH = "layers.mlp.up_proj.kernel"


def with_value(value: float):
    """A tiny model with this weight in one layer."""
    model = tiny("llama")
    kernel = model.layers.mlp.up_proj.kernel
    kernel.set_value(kernel.get_value().at[1, 3, 5].set(value))
    return model


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (70_000.0, "float16", r"a value of 70,000, and float16 ends at 65,504"),
        (-3.4e38, "bfloat16", r"a value of 3.4e\+38, and bfloat16 ends at 3.38953e\+38"),
        (float("inf"), "float32", "a value that is not finite"),
        (float("nan"), "bfloat16", "a value that is not finite"),
    ],
)
def test_a_weight_that_would_be_written_as_no_number_is_named_and_nothing_is_written(value, dtype, said, tmp_path):
    with pytest.raises(UserError, match=rf"{KEY} has {said}"):
        save_model(tmp_path / "m", random_config("llama"), with_value(value), dtype=jnp.dtype(dtype))
    assert not list(tmp_path.iterdir())


@settings(deadline=None)
@given(st.floats(60_000, 70_000, width=32))
def test_what_float16_rounds_to_a_number_is_written(value):
    kernels = {weight.path: jnp.zeros((len(weight.entries), 1)) for weight in weights(random_config("llama"))}
    values = {**kernels, PATH: kernels[PATH].at[1].set(value)}
    with np.errstate(over="ignore"):
        fits = np.isfinite(np.float32(value).astype(np.float16))
    if fits:
        check_range("m", random_config("llama"), values, "float16")
    else:
        with pytest.raises(UserError, match=KEY):
            check_range("m", random_config("llama"), values, "float16")


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_base_with_a_weight_that_is_no_number_is_refused_by_name(value, stored, tmp_path):
    save_model(tmp_path / "m", random_config("llama"), tiny("llama"), dtype=jnp.dtype(stored))
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors[KEY][95, 63] = value
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    for dtype in (jnp.float32, jnp.bfloat16):
        with pytest.raises(UserError, match=rf"m: weight {KEY} has a value of {value}, expected finite numbers"):
            load_model(tmp_path / "m", dtype=dtype)


def test_the_expert_whose_weight_is_no_number_is_named(tmp_path):
    save_model(tmp_path / "m", random_config("mixtral"), tiny("mixtral"), dtype=jnp.float32)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    key = "model.layers.2.block_sparse_moe.experts.3.w2.weight"
    tensors[key][1, 2] = np.nan
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"weight {key} has a value of nan"):
        load_model(tmp_path / "m", dtype=jnp.float32)


def test_a_base_whose_weight_is_beyond_the_dtype_that_it_is_computed_in_is_refused(tmp_path):
    save_model(tmp_path / "m", random_config("llama"), tiny("llama"), dtype=jnp.float32)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    stored[KEY][2, 2] = -3.4e38
    save_file(stored, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    load_model(tmp_path / "m", dtype=jnp.float32)
    with pytest.raises(UserError, match=rf"m: weight {KEY} has a value of -3.4e\+38, and bfloat16 ends at"):
        load_model(tmp_path / "m", dtype=jnp.bfloat16)
