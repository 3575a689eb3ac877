"""A model loaded onto a mesh is the one loaded onto a device, and a process holds its share of it and little more."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gguf import GGMLQuantizationType as Kind
from gguf_files import write_gguf
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file
from test_gguf_weights import packed
from test_model_files import assert_same
from tiny_models import tiny

from jaxlm.families.config import ModelConfig
from jaxlm.families.names import weights
from jaxlm.families.registry import random_config
from jaxlm.files import stored
from jaxlm.files.hf import save_model
from jaxlm.files.hf_folder import HFFolder
from jaxlm.files.weights import load_model
from jaxlm.models.transformer import Transformer
from jaxrun.process.errors import UserError

SHARED = {
    "both": ("a", "b"),
    "in twice": (("a", "b"), None),
    "nothing": (None, None),
}


def on_mesh(shared):
    """Places weights by the mesh axes that share out their inputs and outputs; vectors lie along outputs."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[2:6])

    def place(weight):
        stack = () if weight.layers is None else (None,)
        return NamedSharding(mesh, PartitionSpec(*stack, *SHARED[shared][-len(weight.shape) :]))

    return place


def assert_placed(model, config, placement):
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    assert len(flat) == len(weights(config))
    for weight in weights(config):
        assert flat[tuple(weight.path.split("."))].get_value().sharding == placement(weight), weight.path


@pytest.fixture
def in_parts(monkeypatch):
    """From here on larger tensors of the tiny models are read in parts, of some of them the last one smaller."""
    return lambda: monkeypatch.setattr(stored, "PART_SIZE", 1024)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny model in several files, and what it is on one device."""

    @functools.cache
    def save(family):
        folder = tmp_path_factory.mktemp("saved") / "m"
        save_model(folder, random_config(family), tiny(family), dtype=jnp.float32, max_shard_bytes=100_000)
        return folder, load_model(folder, dtype=jnp.bfloat16)[1]

    return save


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "shared"),
    [
        *((family, "both") for family in ("gpt2", "llama", "mixtral")),
        *(("llama", one) for one in ("in twice", "nothing")),
    ],
)
def test_a_sharded_model_is_the_plain_one_bit_for_bit_and_nothing_is_read_twice(
    family, shared, saved, in_parts, monkeypatch
):
    folder, plain = saved(family)
    in_parts()
    numbers, read = [], HFFolder.read
    monkeypatch.setattr(HFFolder, "read", lambda *given: numbers.append(part := read(*given)) or part)
    config, model = load_model(folder, dtype=jnp.bfloat16, placement=on_mesh(shared))
    assert_placed(model, config, on_mesh(shared))
    assert_same(model, plain)
    held = sum(len(weight.entries) * int(np.prod(weight.shape)) for weight in weights(config))
    assert sum(part.size for part in numbers) == held, "however many devices hold it"


def test_a_model_read_in_parts_onto_one_device_is_the_plain_one(saved, in_parts):
    folder, plain = saved("llama")
    in_parts()
    assert_same(load_model(folder, dtype=jnp.bfloat16)[1], plain)


@pytest.mark.parametrize(("family", "kind"), [("mistral", Kind.Q8_0), ("gemma3", Kind.BF16), ("gpt2", Kind.Q4_0)])
def test_a_sharded_gguf_model_is_the_plain_one_bit_for_bit(family, kind, tmp_path, in_parts):
    path = packed(tmp_path, family, kind)
    plain = load_model(path, dtype=jnp.float32)[1]
    in_parts()
    config, model = load_model(path, dtype=jnp.float32, placement=on_mesh("both"))
    assert_placed(model, config, on_mesh("both"))
    assert_same(model, plain)


def test_rows_and_biases_that_llama_cpp_has_rearranged_are_sharded_too(tmp_path, in_parts):
    config = replace(random_config("mistral"), family="llama", sliding_window=None, qkv_bias=True, o_bias=True)
    model = Transformer(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(1), 64))
    nnx.update(model, jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), nnx.state(model)))
    save_model(tmp_path / "m", config, model, dtype=jnp.float32)
    write_gguf(tmp_path / "m.gguf", tmp_path / "m", config)
    in_parts()
    _, loaded = load_model(tmp_path / "m.gguf", dtype=jnp.float32, placement=on_mesh("both"))
    assert_same(loaded, model)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_random_weights_are_the_same_wherever_they_lie(family, saved):
    folder, _ = saved(family)
    kinds = {"dtype": jnp.float32 if family == "gpt2" else jnp.bfloat16, "random_init": True, "seed": 5}
    plain = load_model(folder, **kinds)[1]
    for shared in ("both", "nothing") if family == "llama" else ("both",):
        config, model = load_model(folder, **kinds, placement=on_mesh(shared))
        assert_placed(model, config, on_mesh(shared))
        assert_same(model, plain)


def test_a_weight_of_another_shape_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    config = random_config("qwen2")
    save_model(tmp_path / "m", config, tiny("qwen2"), dtype=jnp.float32)
    held = load_file(tmp_path / "m" / "model.safetensors")
    held["model.layers.2.mlp.up_proj.weight"] = np.zeros((64, 96), np.float32)
    save_file(held, tmp_path / "m" / "model.safetensors")
    monkeypatch.setattr(HFFolder, "read", lambda *given: pytest.fail("read"))
    with pytest.raises(UserError) as caught:
        load_model(tmp_path / "m", dtype=jnp.float32, placement=on_mesh("both"))
    said = "weight model.layers.2.mlp.up_proj.weight has shape (96, 64), expected (64, 96) by its config"
    assert str(caught.value).endswith(said)


@pytest.mark.slow
def test_a_process_needs_its_shard_and_one_tensor_in_memory(script, tmp_path):
    """Anonymous memory of two processes that load one model, each its half, and compare it with what was written."""
    check = script("check_loading")
    config = ModelConfig("llama", 8192, 2048, 8192, 2, 16, 4, 128, max_position=64)
    check.write(tmp_path / "m", config)
    total = 2 * sum(len(one.entries) * int(np.prod(one.shape)) for one in weights(config))
    tensor = check.largest_tensor(config)
    needs = check.run(check.ProcessCase(2, 1), tmp_path / "m")
    for shards, peak in needs:
        print(f"shards {shards}, largest tensor {tensor}, peak {peak}")
        assert total / 2 <= shards <= total / 2 * 1.001
        assert shards <= peak <= shards + tensor + check.RUNTIME_BYTES < total
