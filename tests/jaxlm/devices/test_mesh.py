"""Sharding of weights over a mesh, and the meshes that a model and a machine allow."""

import math
from dataclasses import replace

import pytest
from jax.sharding import PartitionSpec as P

from jaxlm.devices.mesh import logical_axes, make_layout, on_mesh
from jaxlm.devices.mesh_spec import MeshSpec
from jaxlm.families.names import weights
from jaxlm.families.registry import random_config
from jaxrun.process.errors import UserError

LLAMA = random_config("llama")
SHARDED = ("data", "adapter")


def test_columns_and_rows_of_a_block_are_shared_out_and_the_other_side_is_sharded():
    layout = make_layout({"adapter": 4, "tensor": 2}, LLAMA)
    specs = {one.path: layout.placement(one).spec for one in weights(LLAMA)}
    assert specs["layers.self_attn.q_proj.kernel"] == P(None, SHARDED, ("tensor",))
    assert specs["layers.self_attn.o_proj.kernel"] == P(None, ("tensor",), SHARDED)
    assert specs["layers.mlp.down_proj.kernel"] == P(None, ("tensor",), SHARDED)
    assert specs["embed_tokens.embedding"] == P(None, (*SHARDED, "tensor"))
    assert specs["layers.input_layernorm.scale"] == P(None, None)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3", "gpt2"])
def test_every_matrix_of_every_family_is_sharded_over_all_devices(family):
    config = random_config(family)
    layout = make_layout({"adapter": 8}, config)
    for weight in weights(config):
        placed = layout.placement(weight)
        shape = weight.shape if weight.layers is None else (len(weight.layers), *weight.shape)
        held = placed.shard_shape(shape)
        parts = 8 if len(weight.shape) == 2 else 1
        assert math.prod(held) * parts == math.prod(shape)


def test_a_base_that_is_not_sharded_is_split_along_tensor_alone():
    layout = make_layout({"adapter": 4, "tensor": 2, "shard_base": False}, LLAMA)
    specs = {one.path: layout.placement(one).spec for one in weights(LLAMA)}
    assert specs["layers.self_attn.q_proj.kernel"] == P(None, None, ("tensor",))
    assert specs["layers.self_attn.o_proj.kernel"] == P(None, ("tensor",), None)
    assert specs["embed_tokens.embedding"] == P(None, ("tensor",))
    odd = make_layout({"adapter": 5, "shard_base": False}, LLAMA)
    assert not odd.mesh_axes.gathers, "5 devices need not divide the width where nothing is split by it"


def test_biases_of_columns_go_with_them_and_those_of_rows_are_whole():
    assert logical_axes("layers.self_attn.k_proj.bias") == ("heads",)
    assert logical_axes("layers.self_attn.o_proj.bias") == (None,)


def test_two_dimensions_on_one_axis_of_the_mesh_are_refused():
    with pytest.raises(ValueError, match="two of them lie on mesh axis adapter"):
        on_mesh("slot", "embed")


@pytest.mark.parametrize(
    ("mesh", "config", "line"),
    [
        ({"tensor": 3}, LLAMA, "mesh.tensor: given 3, expected a power of two"),
        ({"tensor": 4}, LLAMA, "mesh.tensor: given 4, expected a divisor of the model's 2 key heads"),
        ({"tensor": 2}, random_config("gpt2"), "expected 1 for a model whose c_attn is several projections"),
        (
            {"tensor": 2},
            random_config("olmo2"),
            "expected 1 for a model that norms all heads' queries together (olmo2)",
        ),
        (
            {"adapter": 16},
            LLAMA,
            "mesh: given adapter: 16, tensor: 1, data: 1, which is 16 devices, expected at most 8",
        ),
        ({"adapter": 0}, LLAMA, "expected numbers from 1 up"),
        ({"tensor": 0}, LLAMA, "expected numbers from 1 up"),
        ({"adapter": 5}, LLAMA, "5 devices, expected a divisor of the model's width of 64"),
        ({"tensor": 2}, replace(LLAMA, intermediate_size=97), "expected a divisor of the model's 97 inner neurons"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(mesh, config, line):
    with pytest.raises(UserError) as refused:
        make_layout(mesh, config)
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_the_adapter_axis_takes_the_devices_that_the_others_leave():
    assert str(make_layout(MeshSpec(tensor=2), LLAMA)) == "adapter: 4, tensor: 2, data: 1, shard_base: true"
    assert make_layout({"adapter": 2}, LLAMA).mesh.size == 2
