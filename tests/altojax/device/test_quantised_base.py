"""Adapters on a packed base get what they get on the matrices that it stands for, and two layers at most are dense."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIG, PROJECTIONS, SMALL, TINY_ROWS

from altojax.device.auto_mesh import choose_layout
from altojax.device.footprint import footprint
from altojax.device.multi_lora.adapt import adapt
from altojax.device.multi_lora.routing import LoRA, Routing
from altojax.device.step import StaticPlan, split_model
from altojax.estimates.memory_model import base_of
from jaxlm.devices.frozen_weight import all_dense
from jaxlm.devices.mesh_spec import MeshSpec
from jaxlm.families.names import adaptable
from jaxlm.families.registry import random_config
from jaxlm.models.computation import Remat
from jaxlm.models.head import target_nll
from jaxlm.models.transformer import Transformer
from jaxlm.quantised.formats import PACKS, formed, forms_of
from jaxrun.process.errors import UserError

TOKENS = np.random.default_rng(0).integers(3, 64, (2, 16)).astype(np.int32)
ROUTING = Routing(jnp.asarray([1, 0], jnp.int32), jnp.asarray([2.0, 0.5], jnp.float32))
MIXTURE = replace(random_config("mixtral"), num_layers=2, vocab_size=64, fused_qkv=True)
"""With experts, and as Phi-3 with a projection that is three."""
OTHERS = ("self_attn.qkv_proj", "mlp.experts.down_proj")
FORMS = pytest.mark.parametrize("name", PACKS)


def model_of(config, name=None, **kinds):
    """A model with two adapters that are not empty; its matrices are packed."""
    model = Transformer(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0), **kinds)
    if name is not None:
        graph, state = nnx.split(model)
        flat = dict(nnx.to_flat_state(state))
        for path in forms_of(config, PACKS[name]):
            variable = flat[tuple(path.split("."))]
            flat[tuple(path.split("."))] = variable.replace(jax.jit(PACKS[name])(variable.get_value()))
        model = nnx.merge(graph, nnx.from_flat_state(flat))
    key = iter(jax.random.split(jax.random.key(1), 100))
    adapted = {key: one for key, one in adaptable(config).items() if key in (*PROJECTIONS, *OTHERS)}
    adapt(model, adapted, slots=2, rank=4, zeros=lambda _, __, shape: 0.1 * jax.random.normal(next(key), shape))
    return model


@partial(jax.jit, static_argnums=0)
def step(graph, adapters, weights):
    """The loss and the gradients of the adapters."""

    def loss(adapters):
        model = nnx.merge(graph, adapters, weights)
        hidden = model(jnp.asarray(TOKENS), routing=ROUTING)[:, :-1].reshape(-1, model.config.hidden_size)
        return jnp.sum(target_nll(hidden, model.head_kernel(), jnp.asarray(TOKENS[:, 1:]).reshape(-1), chunk=32))

    return jax.value_and_grad(loss)(adapters)


def operands(model):
    """What `step` takes."""
    frozen, adapters = split_model(model, LoRA)
    return frozen.graph, adapters, frozen.weights


@pytest.mark.parametrize("config", (CONFIG, pytest.param(MIXTURE, marks=pytest.mark.slow)), ids=("llama", "mixture"))
def test_losses_and_gradients_are_those_of_the_dense_matrices(config):
    model = model_of(config, "nf4")
    found = step(*operands(model))
    graph, state = nnx.split(model)
    wanted = step(*operands(nnx.merge(graph, all_dense(state, jnp.float32))))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5), found[1], wanted[1])
    assert all(jnp.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(wanted[1]))


@pytest.mark.parametrize("scan", (True, False))
def test_a_step_makes_no_more_than_two_layers_dense_at_a_time(scan):
    config = replace(CONFIG, hidden_size=512, intermediate_size=512, num_heads=4, num_kv_heads=4, head_dim=128)
    temporary = []
    for layers in (2, 4):
        model = nnx.eval_shape(partial(model_of, replace(config, num_layers=layers), "nf4", scan_layers=scan))
        temporary.append(step.lower(*operands(model)).compile().memory_analysis().temp_size_in_bytes)
    dense = base_of(config, 4, forms_of(config, PACKS["nf4"])).dense
    assert dense == 4 * 7 * 512**2
    assert temporary[1] - temporary[0] < dense, "two more layers take less than one of them dense"
    assert temporary[0] < 4 * dense


@FORMS
def test_the_memory_of_a_run_is_foreseen(name):
    plan = StaticPlan(2, 4, PROJECTIONS, TINY_ROWS, accumulates=False, drops=False)
    kinds = {"dtype": jnp.float32, "remat": Remat("none", True), "training": SMALL, "evaluation": SMALL}
    forms = forms_of(CONFIG, PACKS[name])
    found, plain = footprint(CONFIG, plan, forms=forms, **kinds), footprint(CONFIG, plan, **kinds)
    state = nnx.state(nnx.eval_shape(lambda: model_of(CONFIG, name)), nnx.Param)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert base_of(CONFIG, 4, forms).total == held
    salts = plain.base - base_of(CONFIG, 4).total
    assert found.base - salts == held < plain.base / 2
    assert found.adapters == plain.adapters


def test_devices_that_would_share_a_block_are_refused():
    config = replace(CONFIG, hidden_size=192, num_heads=6, num_kv_heads=6, head_dim=32, intermediate_size=192)
    forms = forms_of(config, PACKS["nf4"])
    kinds = (config, 4, "float32", 2**30, forms)
    assert choose_layout(MeshSpec(adapter=3, shard_base=True), *kinds).shards_base
    with pytest.raises(UserError, match=r"2 devices would share layers.self_attn.q_proj.kernel, of which 3 parts are"):
        choose_layout(MeshSpec(adapter=2, shard_base=True), *kinds)
    assert not choose_layout(MeshSpec(adapter=2, shard_base=False), *kinds).shards_base
    with pytest.raises(UserError, match=r"of which 3 parts are packed by themselves, expected a divisor of them$"):
        choose_layout(MeshSpec(adapter=1, tensor=2), *kinds)


def test_forms_are_put_into_a_model_that_does_not_exist():
    forms = forms_of(CONFIG, PACKS["nf4"])
    made = nnx.eval_shape(
        lambda: formed(Transformer(CONFIG, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0)), forms)
    )
    assert made.layers.mlp.up_proj.kernel.get_value().values.dtype == jnp.uint8
