"""Stacked adapters: what projections of one input share, and which layers a training run compiles in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIG

from altojax.config.tune_config import BaseSpec
from altojax.device.multi_lora.adapt import adapt
from altojax.device.multi_lora.linear import MultiLoRALinear
from altojax.device.multi_lora.routing import Routing
from jaxlm.families.names import projections
from jaxlm.models.computation import scans_layers
from jaxlm.models.layers import project
from jaxlm.models.transformer import Transformer
from pallas_kernels import token_seeds

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def one_layer(names: tuple[str, ...], adapted: set[str]) -> list:
    """Those projections of a model's first layer, with random adapters on the adapted ones."""
    model = Transformer(CONFIG, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    sites = {key: one for key, one in projections(CONFIG).items() if key.split(".")[-1] in adapted}
    adapt(model, sites, slots=2, rank=4)
    owner = model.layers.self_attn if "q_proj" in names else model.layers.mlp
    layers, draw = [getattr(owner, name) for name in names], np.random.default_rng(0)
    for layer in layers:
        if isinstance(layer, MultiLoRALinear):
            for half in (layer.lora_a, layer.lora_b):
                half[...] = jnp.asarray(draw.standard_normal(half.shape), jnp.float32)
    parts = [nnx.split(layer) for layer in layers]
    return [nnx.merge(graph, jax.tree.map(lambda stacked: stacked[0], state)) for graph, state in parts]


@pytest.mark.parametrize("dropped", [0.0, 0.4])
@pytest.mark.parametrize("names", TOGETHER, ids=["attention", "mlp"])
def test_projections_of_one_input_together_are_what_each_is_alone(names, dropped):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 8, CONFIG.hidden_size)), jnp.float32)
    slots, keys = jnp.asarray([1, 0, 1], jnp.int32), jnp.asarray([token_seeds(key, 8) for key in (5, 6, 7)])
    routing = Routing(slots, jnp.asarray([2.0, 0.5]), jnp.full((2,), dropped), keys)
    for adapted in (set(names), {names[0]}):
        layers = one_layer(names, adapted)
        alone = [layer(x, routing) for layer in layers]
        for mine, together in zip(alone, project(layers, x, routing), strict=True):
            np.testing.assert_array_equal(together, mine)


@pytest.mark.parametrize(
    ("platform", "remat", "given", "scans"),
    [
        ("cpu", "none", None, True),
        ("tpu", "dots", None, True),
        ("gpu", "dots", None, False),
        ("gpu", "none", None, False),
        ("gpu", "full", None, True),
        ("gpu", "none", True, True),
        ("cpu", "none", False, False),
    ],
)
def test_where_only_steps_matter_a_gpu_compiles_layers_in_place_unless_told_otherwise(
    monkeypatch, platform, remat, given, scans
):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    spec = BaseSpec(model_name_or_path="x", scan_layers=given)
    assert scans_layers(spec, remat) is scans
