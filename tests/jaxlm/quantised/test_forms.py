"""Matrices packed in few bits are within half a step of what they were, in as many bytes as said, and cut as said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jaxlm.devices.frozen_weight import map_arrays, specs_of
from jaxlm.families.names import weights
from jaxlm.families.registry import random_config
from jaxlm.models.spec import ModelSpec
from jaxlm.quantised import nested_scales
from jaxlm.quantised.bits import packed, unpacked
from jaxlm.quantised.formats import PACKS, bytes_of, forms_of
from jaxlm.quantised.nf4 import TABLES
from jaxrun.process.errors import UserError

PACKED = {name: jax.jit(pack) for name, pack in PACKS.items()}
FORMS = pytest.mark.parametrize("name", PACKS)
BITS = {"nf4": 4 + 32 / 64, "int8": 8 + 32 / 256, "int4": 4 + 24 / 128}
BITS["nf4_double"] = 4 + (8 + 32 / 32) / 64 + 32 / (256 * 24)
"""Of a number, where there are 256 inputs and 24 outputs: int8 has a scale of 32 bits for all inputs, and of nf4_double
32 scales share a factor."""


def matrix(seed=0, layers=2, inputs=256, outputs=24):
    drawn = np.random.default_rng(seed).standard_t(4, (layers, inputs, outputs)).astype(np.float32)
    drawn[:, :64, 3] = 0
    return drawn


def steps(name, given):
    """The largest distance of two numbers that follow each other, where a number is."""
    if name == "int8":
        return np.abs(given).max(axis=-2, keepdims=True) / 127 * np.ones_like(given)
    block = 64 if name.startswith("nf4") else 128
    blocks = given.reshape(given.shape[0], -1, block, given.shape[-1])
    if name.startswith("nf4"):
        largest = np.abs(blocks).max(axis=2, keepdims=True)
        widest = np.diff(TABLES["nf4"]).max() * largest
        if name == "nf4_double":  # whose scales are off by half a step of theirs, of which 1 has all
            reach = np.abs(largest - largest.mean(axis=(1, 2, 3), keepdims=True)).max(axis=(1, 2, 3), keepdims=True)
            widest = widest + np.diff(nested_scales.TABLE).max() * reach
    else:
        reach = np.maximum(blocks.max(axis=2, keepdims=True), 0) - np.minimum(blocks.min(axis=2, keepdims=True), 0)
        widest = reach / 15 * 1.15  # a scale of bfloat16 is off by 2^-9, of which the 15th number has 15
    return (widest * np.ones_like(blocks)).reshape(given.shape)


@FORMS
@settings(max_examples=5)
@given(seed=st.integers(0, 2**16))
def test_numbers_are_rounded_to_the_nearest_and_zeros_stay(name, seed):
    given = matrix(seed)
    found = np.asarray(PACKED[name](jnp.asarray(given)).dense(jnp.float32))
    assert (np.abs(found - given) <= 0.501 * steps(name, given)).all()
    assert (found[:, :64, 3] == 0).all()
    if name in ("nf4", "int8"):  # groups of int4 need not reach as far as they did, nor scales of nf4_double
        again = PACKED[name](jnp.asarray(found)).dense(jnp.float32)
        np.testing.assert_allclose(again, found, rtol=1e-6)


@FORMS
def test_bytes_are_those_of_the_bits(name):
    form = PACKED[name](jnp.asarray(matrix()))
    assert 8 * bytes_of(form) == BITS[name] * matrix().size
    assert bytes_of(jax.eval_shape(PACKS[name], matrix())) == bytes_of(form)


@FORMS
def test_a_part_of_the_matrix_is_the_same_part_of_its_arrays(name):
    count = 512 if name == "nf4_double" else 256  # of which each half has whole groups of scales
    form, whole = PACKED[name](jnp.asarray(matrix(inputs=count))), slice(None)
    for inputs, outputs in ((2, 1), (1, 3), (2, 3)):
        cut = map_arrays(
            lambda array, along: array[
                whole, slice(array.shape[1] // (along[0] or 1)), slice(array.shape[2] // (along[1] or 1))
            ],
            form,
            inputs,
            outputs,
        )
        assert cut.along("in", "out") == form.along("in", "out"), "also where one group is left"
        dense = form.dense(jnp.float32)[:, : count // inputs, : 24 // outputs]
        np.testing.assert_array_equal(cut.dense(jnp.float32), dense)


@FORMS
def test_a_layer_is_that_of_the_stack_and_dense_is_rounded_once(name):
    form = PACKED[name](jnp.asarray(matrix()))
    stacked = form.dense(jnp.float32)
    np.testing.assert_array_equal(jax.tree.map(lambda one: one[1], form).dense(jnp.float32), stacked[1])
    np.testing.assert_array_equal(jax.jit(lambda one: one.dense(jnp.bfloat16))(form), stacked.astype(jnp.bfloat16))


def test_a_byte_holds_the_first_of_two_inputs_in_its_upper_half():
    numbers = jnp.asarray([[1, 2], [3, 4], [15, 0], [0, 15]], jnp.uint8)
    np.testing.assert_array_equal(packed(numbers), [[0x13, 0x24], [0xF0, 0x0F]])
    np.testing.assert_array_equal(unpacked(packed(numbers)), numbers)


@pytest.mark.parametrize("name", ("nf4", "int4"))
def test_blocks_are_as_large_as_the_inputs_allow_and_no_smaller_than_16(name):
    shapes = {inputs: jax.eval_shape(PACKS[name], np.zeros((1, inputs, 8), np.float32)) for inputs in (576, 48)}
    assert [one.scale.shape[-2] for one in shapes.values()] == [9, 3]
    with pytest.raises(UserError, match="a matrix of 24 inputs, expected a multiple of 16, or int8"):
        PACKS[name](jnp.zeros((1, 24, 8)))


@FORMS
def test_forms_of_a_model_are_of_its_projections_alone(name):
    config = random_config("llama")
    forms = forms_of(config, PACKS[name])
    for weight in weights(config):
        assert (weight.path in forms) == weight.path.endswith("_proj.kernel")
    for form in forms.values():
        specs = jax.tree.leaves(specs_of(form, P(None, "a", "b")))
        assert len(specs) == len(jax.tree.leaves(form))
        of_all = name == "nf4_double"  # the mean of its scales
        assert all(one[0] is None and one[2] == "b" for one in specs[: len(specs) - of_all])


def test_forms_of_a_mixture_are_of_its_experts_too_and_not_of_its_router():
    config = random_config("mixtral")
    forms = forms_of(config, PACKS["nf4"])
    assert "layers.mlp.router.kernel" not in forms
    experts = forms["layers.mlp.experts.down_proj.kernel"]
    assert experts.values.shape[:2] == experts.scale.shape[:2] == (config.num_layers, config.experts)


def test_what_trains_has_no_form():
    assert "quantize" not in ModelSpec.model_fields
