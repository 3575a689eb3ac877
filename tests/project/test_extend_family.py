"""A family is one file and one place in a table: the one that docs/extend/family.md shows does all that others do."""

import json
from dataclasses import replace

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import logits_of, random_base
from gguf_files import write_metadata
from how_tos import shown
from jax.sharding import PartitionSpec as P
from safetensors import safe_open
from tiny import HYPER, TINY_ROWS, make_rows

from altojax.adapters.peft_config import AdapterSpec
from altojax.adapters.peft_files import export_adapter, read_adapter
from altojax.adapters.target_modules import match_targets
from altojax.device.batch import Stream, next_part
from altojax.device.executor import Executor, StaticPlan
from altojax.device.slots import fresh
from altojax.estimates.memory_model import base_of, kept_in_layer
from jaxlm.devices.mesh import make_layout
from jaxlm.families.names import projections, weights
from jaxlm.families.registry import FAMILIES, random_config, register
from jaxlm.files.hf import save_model
from jaxlm.files.hf_config import from_hf, to_hf
from jaxlm.files.weights import load_model
from jaxlm.models.functional import weights_by_path
from jaxrun.process.errors import UserError
from twistjax.tickets.hf_ticket import save_ticket
from twistjax.training.gather_scatter import gather
from twistjax.training.units import units_of

TOKENS = np.random.default_rng(0).integers(3, 256, (2, 16)).astype(np.int32)
RANK = 4


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The family's config, a random model of it, and the folder that this was written to."""
    register(shown("family.md").TOY)
    config = random_config("toy")
    model, folder = random_base(config), tmp_path_factory.mktemp("toy") / "model"
    save_model(folder, config, model, dtype=jnp.float32)
    yield config, model, folder
    del FAMILIES["toy"]


def test_its_files_are_read_under_its_own_names(toy, tmp_path):
    config, model, folder = toy
    with safe_open(folder / "model.safetensors", framework="np") as file:
        assert {"model.layers.2.self_attn.dense.bias", "model.layers.0.mlp.fc1.weight"} <= set(file.keys())
    read, again = load_model(folder, dtype=jnp.float32)
    assert read == config
    np.testing.assert_array_equal(logits_of(again, TOKENS), logits_of(model, TOKENS))
    packed, unpacked = load_model(as_gguf(tmp_path / "toy.gguf", config, model), dtype=jnp.float32)
    assert packed == config
    np.testing.assert_array_equal(logits_of(unpacked, TOKENS), logits_of(model, TOKENS))


def as_gguf(path, config, model):
    writer = gguf.GGUFWriter(path, "toy")
    write_metadata(writer, config)
    values = weights_by_path(model, jnp.float32)
    for weight in weights(config):
        owner, _, kind = weight.path.rpartition(".")
        name = FAMILIES["toy"].gguf.name(owner) + (".bias" if kind == "bias" else ".weight")
        for place, layer in enumerate(weight.entries):
            value = np.asarray(values[weight.path] if weight.layers is None else values[weight.path][place])
            writer.add_tensor(name.format(i=layer), np.ascontiguousarray(value.T if kind == "kernel" else value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_it_cannot_be_is_one_line_that_names_the_key(toy, tmp_path):
    config, model, _ = toy
    save_model(tmp_path / "m", config, model, dtype=jnp.float32)
    path = tmp_path / "m" / "config.json"
    raw = json.loads(path.read_text())
    for key, value in (("hidden_act", "relu"), ("final_logit_softcapping", 30.0), ("num_key_value_heads", 3)):
        path.write_text(json.dumps({**raw, key: value}))
        with pytest.raises(UserError, match=f"{key} is {value!r}, expected"):
            load_model(tmp_path / "m", dtype=jnp.float32)


def test_a_setting_of_one_value_is_read_by_a_family_that_computes_it(toy, monkeypatch):
    raw = {**to_hf(toy[0]), "final_logit_softcapping": 30.0}
    with pytest.raises(UserError, match="other values are not implemented"):
        from_hf(raw)
    monkeypatch.setitem(FAMILIES, "toy", replace(FAMILIES["toy"], computes=frozenset({"final_logit_softcapping"})))
    assert from_hf(raw) == toy[0]


def test_an_adapter_trains_and_is_exported_under_its_names(toy, tmp_path):
    config, _, folder = toy
    modules = match_targets(["fc1", "dense", "q_proj"], config)
    known = {key: one for key, one in projections(config).items() if key in modules}
    _, model = load_model(folder, dtype=jnp.float32)
    plan = StaticPlan(1, RANK, known, TINY_ROWS, accumulates=False, drops=False)
    begun = fresh(known, modules, RANK, seed=0)
    rows = make_rows(4)
    with Executor(model, plan) as executor:
        executor.put(0, begun, {**HYPER, "warmup_steps": 0})
        stream = Stream(rows, 0, 40, 4, 1)
        losses = [float(executor.train([next_part(0, stream, 0, step, 0)]).loss[0]) for step in range(4)]
        trained = executor.take(0, RANK, tuple(modules))["adapters"]
    assert losses[-1] < losses[0]
    adapter = {key: (np.asarray(pair["a"]), np.asarray(pair["b"])) for key, pair in trained.items()}
    spec = AdapterSpec("toy", RANK, 8.0, False, 0.0, ["fc1", "dense", "q_proj"], modules)
    export_adapter(tmp_path / "adapter", spec, adapter, config, None, {})
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["target_modules"] == ["dense", "fc1", "q_proj"]
    assert read_adapter(tmp_path / "adapter", config)[0].modules == modules


def test_estimates_and_meshes_know_it(toy):
    config, model, _ = toy
    held = sum(value.size for value in weights_by_path(model, jnp.float32).values())
    assert base_of(config).total == 2 * held
    gated = replace(config, gated_mlp=True)
    assert kept_in_layer(gated, RANK, ["mlp.up_proj"], "none") - kept_in_layer(
        config, RANK, ["mlp.up_proj"], "none"
    ) == (2 * config.intermediate_size)
    layout = make_layout({"adapter": 2, "tensor": 2}, config)
    specs = {one.path: layout.placement(one).spec for one in weights(config)}
    assert specs["layers.mlp.up_proj.kernel"] == P(None, ("data", "adapter"), ("tensor",))
    assert specs["layers.self_attn.o_proj.kernel"] == P(None, ("tensor",), ("data", "adapter"))


def test_a_subnetwork_of_it_is_cut_and_comes_back(toy, tmp_path):
    config, model, _ = toy
    units = units_of(config, [0.5], 32)
    kept = units.draw(jax.random.key(0), 0.5)
    small, cut = units.subnetwork(0.5), gather(weights_by_path(model, jnp.float32), kept, units)
    (tmp_path / "ticket").mkdir()
    assert save_ticket(tmp_path / "ticket", small, cut, dtype=jnp.float32)
    read, again = load_model(tmp_path / "ticket", dtype=jnp.float32)
    assert read == small and small.num_heads < config.num_heads
    for path, value in weights_by_path(again, jnp.float32).items():
        np.testing.assert_array_equal(value, cut[path], path)


def test_a_name_that_is_taken_is_refused(toy):
    for taken in ({"name": "llama"}, {"model_type": "gemma3_text"}, {"gguf": FAMILIES["gpt2"].gguf}):
        with pytest.raises(ValueError, match="exists already"):
            register(replace(FAMILIES["toy"], **{"name": "other", "model_type": "other", "gguf": None, **taken}))
